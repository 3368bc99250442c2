// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What can go wrong with a volume, and the errno each case becomes.

use std::{fmt, io};

/// Errno values of Linux that this crate answers with.
pub mod errno {
    #![allow(missing_docs)]
    pub const ENOENT: i32 = 2;
    pub const EIO: i32 = 5;
    pub const EBUSY: i32 = 16;
    pub const ENXIO: i32 = 6;
    pub const E2BIG: i32 = 7;
    pub const EACCES: i32 = 13;
    pub const EEXIST: i32 = 17;
    pub const ENOTDIR: i32 = 20;
    pub const EISDIR: i32 = 21;
    pub const EINVAL: i32 = 22;
    pub const ENOTTY: i32 = 25;
    pub const EFBIG: i32 = 27;
    pub const ENOSPC: i32 = 28;
    pub const EROFS: i32 = 30;
    pub const EMLINK: i32 = 31;
    pub const ERANGE: i32 = 34;
    pub const ENAMETOOLONG: i32 = 36;
    pub const ENOSYS: i32 = 38;
    pub const ENOTEMPTY: i32 = 39;
    pub const ENODATA: i32 = 61;
    pub const EBADMSG: i32 = 74;
    pub const EOPNOTSUPP: i32 = 95;
    pub const ESTALE: i32 = 116;
    pub const EUCLEAN: i32 = 117;
}

/// The error of everything in this crate.
#[derive(Debug)]
pub enum Error {
    /// The image contradicts itself. The kernel's name for this is `EFSCORRUPTED`.
    Corrupt(String),
    /// A metadata checksum does not match. The kernel's name for this is `EFSBADCRC`.
    Checksum(String),
    /// The volume uses something that this server does not do.
    Unsupported(String),
    /// The device failed.
    Io(io::Error),
    /// An ordinary refusal, such as `ENOENT`.
    Errno(i32),
}

/// Result with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The errno a FUSE reply carries for this error.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Corrupt(_) => errno::EUCLEAN,
            Error::Checksum(_) => errno::EBADMSG,
            Error::Unsupported(_) => errno::EOPNOTSUPP,
            Error::Io(err) => err.raw_os_error().unwrap_or(errno::EIO),
            Error::Errno(errno) => *errno,
        }
    }

    /// Whether this is damage that an operator should hear about, as opposed to an ordinary refusal.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Error::Errno(_))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Corrupt(what) => write!(f, "corrupt filesystem: {what}"),
            Error::Checksum(what) => write!(f, "checksum does not match: {what}"),
            Error::Unsupported(what) => write!(f, "not supported: {what}"),
            Error::Io(err) => write!(f, "device: {err}"),
            Error::Errno(errno) => write!(f, "{}", io::Error::from_raw_os_error(*errno)),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(err: io::Error) -> Self {
        Error::Io(err)
    }
}

impl From<fs_ext4::Error> for Error {
    fn from(err: fs_ext4::Error) -> Self {
        use fs_ext4::Error as E;
        match err {
            E::Io(err) => Error::Io(err),
            E::BadChecksum { what } => Error::Checksum(what.to_string()),
            E::Unsupported(what) => Error::Unsupported(what.to_string()),
            E::UnsupportedIncompat(bits) => {
                Error::Unsupported(format!("incompatible features {bits:#x}"))
            }
            other => Error::Corrupt(other.to_string()),
        }
    }
}

/// Shorthand for an ordinary refusal.
pub(crate) fn refuse<T>(errno: i32) -> Result<T> {
    Err(Error::Errno(errno))
}

/// Shorthand for a corruption error.
pub(crate) fn corrupt<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Corrupt(what.into()))
}
