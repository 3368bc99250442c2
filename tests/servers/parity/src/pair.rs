// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Two filesystems of the same kind, side by side.

use crate::seen::{Broken, Seen};
use crate::steps::Suite;
use crate::stored;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Our server, through iomap.
    Ours,
    /// The kernel's ext4.
    Kernel,
}

/// One of the two filesystems.
pub struct Side {
    /// Which one it is. Steps look at this only where the way to do something differs.
    pub who: Who,
    /// What it is on.
    pub device: PathBuf,
    /// Where it is mounted.
    pub root: PathBuf,
    server: Option<Child>,
    options: &'static str,
}

impl Side {
    /// The path of a name below the root.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn new(who: Who, variable: &str, options: &'static str) -> Result<Self, Broken> {
        let device = std::env::var_os(variable).ok_or(format!("${variable} is not set"))?;
        // Both have the same name, because it is seen in what steps show.
        let root = Path::new("/mnt").join(match who {
            Who::Ours => "ours/root",
            Who::Kernel => "kernel/root",
        });
        std::fs::create_dir_all(&root)?;
        Ok(Self {
            who,
            device: device.into(),
            root,
            server: None,
            options,
        })
    }

    /// Makes an empty volume; both are alike to the last bit, but for the time.
    fn format(&self, options: &[&str]) -> Result<(), Broken> {
        const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";
        let seed = format!("hash_seed={UUID}");
        run(Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-U", UUID])
            .args(["-E", &seed])
            .args(options)
            .arg(&self.device))
    }

    fn mount(&mut self) -> Result<(), Broken> {
        if self.who == Who::Kernel {
            return Ok(mount(
                &self.device,
                &self.root,
                "ext4",
                MountFlags::empty(),
                None,
            )?);
        }
        let bin = std::env::var_os("FI_BIN").ok_or("$FI_BIN is not set")?;
        let mut server = Command::new(Path::new(&bin).join("ext4"))
            .args(["--foreground", "--require-iomap", "-o"])
            .arg(format!("rw,suid,dev{}", self.options))
            .args([&self.device, &self.root])
            .stdin(Stdio::null())
            .spawn()?;
        let start = Instant::now();
        while !is_mounted(&self.root)? {
            if let Some(status) = server.try_wait()? {
                return Err(Broken(format!("the server ended with {status}")));
            }
            if start.elapsed() > Duration::from_secs(30) {
                return Err(Broken("the server does not mount".into()));
            }
            sleep(Duration::from_millis(5));
        }
        self.server = Some(server);
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), Broken> {
        unmount(&self.root, UnmountFlags::empty())?;
        if let Some(mut server) = self.server.take() {
            let status = server.wait()?;
            if !status.success() {
                return Err(Broken(format!("the server ended with {status}")));
            }
        }
        Ok(())
    }
}

/// Runs a program that has to succeed.
pub fn run(command: &mut Command) -> Result<(), Broken> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let program = command.get_program().to_string_lossy();
    Err(Broken(format!(
        "{program}: {}: {}",
        output.status,
        said.trim_end()
    )))
}

fn is_mounted(path: &Path) -> Result<bool, Broken> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let path = path.to_string_lossy();
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(&path)))
}

/// Both, and how many steps came out differently.
pub struct Pair {
    suite: &'static str,
    ours: Side,
    kernel: Side,
    passed: usize,
    failed: usize,
}

impl Pair {
    /// Makes and mounts both.
    pub fn make(suite: &Suite) -> Result<Self, Broken> {
        let mut pair = Self {
            suite: suite.name,
            ours: Side::new(Who::Ours, "FI_DISK_A", suite.options)?,
            kernel: Side::new(Who::Kernel, "FI_DISK_B", "")?,
            passed: 0,
            failed: 0,
        };
        for side in [&mut pair.ours, &mut pair.kernel] {
            side.format(suite.mkfs)?;
            side.mount()?;
        }
        Ok(pair)
    }

    /// Takes one step on each side. It passes if both have shown the same, whatever that is, and
    /// fails if they have not, or if it could not be taken at all.
    pub fn step(&mut self, name: &str, take: impl Fn(&Side) -> Seen) {
        let shown = [&self.ours, &self.kernel].map(take);
        match &shown {
            [Ok(ours), Ok(kernel)] if ours == kernel => self.passes(&format!("{name} ({ours})")),
            [Ok(ours), Ok(kernel)] => {
                self.fails(name, &format!("ours: {ours}; the kernel's: {kernel}"));
            }
            [ours, kernel] => {
                let text = |seen: &Seen| match seen {
                    Ok(seen) => seen.clone(),
                    Err(Broken(why)) => format!("no step: {why}"),
                };
                let text = format!("ours: {}; the kernel's: {}", text(ours), text(kernel));
                self.fails(name, &text);
            }
        }
    }

    /// Unmounts and mounts both again.
    pub fn mount_again(&mut self) {
        self.mount_again_after(|_| Ok(()));
    }

    /// Unmounts both, does something to each volume, and mounts them again.
    pub fn mount_again_after(&mut self, f: impl Fn(&Side) -> Result<(), Broken>) {
        for side in [&mut self.ours, &mut self.kernel] {
            let unmounted = side.unmount().and_then(|()| f(side));
            if let Err(Broken(why)) = unmounted.and_then(|()| side.mount()) {
                println!(
                    "not ok - {}: {:?} mounts again: {why}",
                    self.suite, side.who
                );
                self.failed += 1;
            }
        }
    }

    /// Changes flags of both mounts; `superblock` are those that belong to the filesystem itself.
    pub fn remount(&mut self, superblock: MountFlags, mount: MountFlags) {
        for side in [&self.ours, &self.kernel] {
            let changed = mount_remount(&side.root, superblock | mount, "");
            if let Err(error) = changed {
                println!(
                    "not ok - {}: {:?} is remounted: {error}",
                    self.suite, side.who
                );
                self.failed += 1;
            }
        }
    }

    fn passes(&mut self, name: &str) {
        println!("ok - {}: {}", self.suite, name.replace('\n', " / "));
        self.passed += 1;
    }

    fn fails(&mut self, name: &str, why: &str) {
        println!(
            "not ok - {}: {name}: {}",
            self.suite,
            why.replace('\n', " / ")
        );
        self.failed += 1;
    }

    fn checked(&mut self, name: &str, result: Result<(), Broken>) {
        match result {
            Ok(()) => self.passes(name),
            Err(Broken(why)) => self.fails(name, &why),
        }
    }

    /// Unmounts both and looks at the volumes: e2fsck must find nothing, and the kernel's ext4 must
    /// see on ours what was visible before. Returns how many steps have failed.
    pub fn finish(mut self) -> usize {
        let before = stored::everything(&self.ours.root);
        for side in [&mut self.ours, &mut self.kernel] {
            if let Err(Broken(why)) = side.unmount() {
                println!(
                    "not ok - {}: {:?} is unmounted: {why}",
                    self.suite, side.who
                );
                self.failed += 1;
            }
        }
        let checked = run(Command::new("e2fsck").args(["-fn"]).arg(&self.ours.device));
        self.checked("e2fsck finds nothing", checked);
        let same = self.same_on_disk(before);
        self.checked("all that was visible is on the disk", same);
        println!(
            "# {}: {} passed, {} failed",
            self.suite, self.passed, self.failed
        );
        self.failed
    }

    fn same_on_disk(&self, before: Result<Vec<String>, Broken>) -> Result<(), Broken> {
        let (device, root) = (&self.ours.device, &self.ours.root);
        mount(device, root, "ext4", MountFlags::RDONLY, None)?;
        let after = stored::everything(root);
        unmount(root, UnmountFlags::empty())?;
        stored::same(&before?, &after?)
    }
}
