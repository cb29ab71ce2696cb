//! Every input that is kept, tried again.

use std::{fs, path::Path};

use bazooka_fuzz::TARGETS;

#[test]
fn what_is_kept_breaks_no_promise() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut tried = 0;
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("it can be listed").path();
            eprintln!("{}", path.display());
            target(&fs::read(&path).expect("it can be read"));
            tried += 1;
        }
        assert!(tried > 0, "nothing is kept for {name}");
    }
}
