//! Files that are not trusted to be what they should be: a FIFO is not waited for, a device not read, and what is far
//! too large not taken into memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens `path` as `options` say, without waiting for anybody.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for anything but a regular file, else what opening it fails with.
pub fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let irregular = || io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file");
    // To open a device may do something, and it may have become one by then.
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(irregular());
    }
    // Without it, opening a FIFO waits for whoever has the other end (fifo(7)); regular files do not know it.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = options.clone().custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(irregular()) }
}

/// Reads the whole of `path`.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for anything but a regular file, [`io::ErrorKind::FileTooLarge`] for more than `limit`
/// bytes, else what opening or reading it fails with.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path, OpenOptions::new().read(true))?;
    let too_large =
        |bytes| io::Error::new(io::ErrorKind::FileTooLarge, format!("has {bytes} bytes; at most {limit} are read"));
    let bytes = file.metadata()?.len();
    if bytes > limit {
        return Err(too_large(bytes));
    }
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
    // It may grow meanwhile.
    file.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit { Err(too_large(content.len() as u64)) } else { Ok(content) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    #[test]
    fn only_a_regular_file_of_bounded_size_is_read_and_nothing_is_waited_for() {
        let guard = tempfile::tempdir().unwrap();
        let path = |name: &str| guard.path().join(name);
        mkfifoat(CWD, path("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
        std::fs::create_dir(path("directory")).unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path("device")).unwrap();
        File::create(path("sparse")).unwrap().set_len(300 << 20).unwrap();
        std::fs::write(path("whole"), "1234").unwrap();
        std::os::unix::fs::symlink("whole", path("link")).unwrap();
        let irregular = "is not a regular file";
        let rows = [
            ("fifo", Err(irregular)),
            ("directory", Err(irregular)),
            ("device", Err(irregular)),
            ("socket", Err(irregular)),
            ("none", Err("No such file or directory (os error 2)")),
            ("sparse", Err("has 314572800 bytes; at most 4 are read")),
            ("whole", Ok("1234")),
            ("link", Ok("1234")),
        ];
        for (name, expected) in rows {
            let found = read(&path(name), 4).map_err(|error| error.to_string());
            assert_eq!(found.as_deref(), expected.map(str::as_bytes).map_err(str::to_owned).as_deref(), "{name}");
        }
        assert!(read(&path("whole"), 3).is_err());
        // The kernel's own files have no size.
        assert!(!read(Path::new("/proc/self/stat"), 4096).unwrap().is_empty());
        assert!(read(Path::new("/proc/self/stat"), 4).is_err());
    }

    #[test]
    fn nothing_is_waited_for_when_a_file_is_opened_to_be_written() {
        let guard = tempfile::tempdir().unwrap();
        let path = guard.path().join("fifo");
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        for mut options in [OpenOptions::new(), OpenOptions::new().read(true).clone()] {
            for other in [&path, guard.path()] {
                let error = open(other, options.write(true)).unwrap_err();
                assert_eq!(error.to_string(), "is not a regular file");
            }
        }
        open(&guard.path().join("new"), OpenOptions::new().write(true).create(true)).unwrap();
    }
}
