// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Starting a server without any privilege, with the tools of util-linux.

use std::ffi::OsStr;
use std::process::Command;

/// The user that servers run as. Whose files they serve has nothing to do with it.
const NOBODY: u32 = 65534;

/// `program` as user nobody, without groups and capabilities and any way to get some
/// (`no_new_privs`), in user, mount, pid, network, IPC, UTS and cgroup namespaces of its own. Add
/// its arguments; the descriptors it needs go with [`crate::inherit`].
///
/// It is a grandchild of the caller's: it dies with the child, which returns its exit status.
/// Mounts that are made later do not appear in its mount namespace, so start it before the mount,
/// which would otherwise live on in there.
pub fn sandboxed(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={NOBODY}"))
        .arg(format!("--regid={NOBODY}"))
        .args(["--clear-groups", "--no-new-privs", "--inh-caps=-all"])
        .args(["--ambient-caps=-all", "--bounding-set=-all", "--"])
        .args(["unshare", "--user", "--map-current-user", "--keep-caps"])
        .args(["--mount", "--propagation=private", "--pid", "--net"])
        .args(["--ipc", "--uts", "--cgroup", "--fork", "--kill-child", "--"])
        // Who makes a user namespace has all capabilities in there: not for long.
        .args(["setpriv", "--inh-caps=-all", "--ambient-caps=-all"])
        .args(["--bounding-set=-all", "--"])
        .arg(program);
    command
}
