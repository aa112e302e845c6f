//! Writes good files for the targets to begin with: `seeds FOLDER` makes `FOLDER/TARGET/NAME`.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let folder: PathBuf = std::env::args_os().nth(1).expect("a folder").into();
    for (target, name, bytes) in rewind_fuzz::seeds() {
        let place = folder.join(target);
        std::fs::create_dir_all(&place)?;
        std::fs::write(place.join(name), bytes)?;
    }
    Ok(())
}
