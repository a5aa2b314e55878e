//! Copies the running program to a folder that the pod's containers share. It runs in an image that holds nothing but
//! this program, so there is no `cp` to do it.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// Copies the program to `folder`/kiln-agent. The name appears only with the whole program behind it.
pub(crate) fn install(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let unfinished = folder.join(format!(".kiln-agent.{}", std::process::id()));
    let copied = copy_to(&unfinished).and_then(|()| fs::rename(&unfinished, folder.join("kiln-agent")));
    if copied.is_err() {
        // What matters is the first error; a leftover harms nobody.
        let _ = fs::remove_file(&unfinished);
    }
    copied
}

fn copy_to(path: &Path) -> io::Result<()> {
    let mut program = File::open("/proc/self/exe")?;
    let mut copy = File::create(path)?;
    io::copy(&mut program, &mut copy)?;
    copy.set_permissions(Permissions::from_mode(0o755))
}
