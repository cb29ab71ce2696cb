//! Slugs: fetched once, checked, never half there.

use std::{fs, process::Command};

use visor::schema::{Fault, State};

use crate::world::{SERVER, World, shelve};

#[tokio::test]
async fn a_slug_is_fetched_once_however_many_want_it_and_never_again() {
    let world = World::start().await;
    let ids = world.place_all(vec![world.job("exec sleep 1000"); 20]).await;
    for id in &ids {
        world.until_state(*id, State::Running).await;
    }
    let asked = world.shelf.lock().expect("nobody panics with it").asked.clone();
    assert_eq!(asked.into_values().collect::<Vec<_>>(), [1]);
    // With every rm out of reach, what is here still runs.
    world.shelf.lock().expect("nobody panics with it").slugs.clear();
    let id = world.place(world.web(SERVER)).await;
    world.until_state(id, State::Running).await;
}

#[tokio::test]
async fn a_slug_with_a_flipped_bit_or_cut_short_never_runs() {
    let world = World::start().await;
    let mut ids = Vec::new();
    for (number, cut) in [(1, false), (2, true)] {
        let slug = shelve(&world.shelf, &[("serve.py", &format!("touch {number}"))]);
        {
            let mut shelf = world.shelf.lock().expect("nobody panics with it");
            let bytes = shelf.slugs.get_mut(slug.sha256.as_str()).expect("it was put there");
            let middle = bytes.len() / 2;
            if cut {
                bytes.truncate(middle);
            } else {
                bytes[middle] ^= 1;
            }
        }
        let mut web = world.web(SERVER);
        web.slug = slug;
        ids.push(world.place(web).await);
    }
    for id in ids {
        let status = world.until_state(id, State::Failed).await;
        assert_eq!((status.fault, status.pid, status.exits.len()), (Some(Fault::Host), None, 0));
        let cause = status.cause.expect("it is said");
        assert!(cause.contains("is not the slug"), "{cause}");
    }
    assert_eq!(
        fs::read_dir(world.state().join("slugs")).expect("it is there").count(),
        0,
        "nothing is left of them"
    );
}

#[tokio::test]
async fn a_full_disk_leaves_no_half_slug_and_is_told_plainly() {
    let mut world = World::without_pm().await;
    fs::create_dir_all(world.state()).expect("it can be made");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m,mode=755", "tmpfs"])
        .arg(world.state())
        .status();
    assert!(mounted.expect("mount is there").success(), "this test takes root");
    let _unmount = Unmount(world.state());
    world.start_pm();
    let noise: String = (0..4_000_000_u32)
        .map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8 % 26))
        .collect();
    let mut web = world.web(SERVER);
    web.slug = shelve(&world.shelf, &[("serve.py", &noise)]);
    let id = world.place(web).await;
    let status = world.until_state(id, State::Failed).await;
    assert_eq!(status.fault, Some(Fault::Host));
    let cause = status.cause.expect("it is said");
    assert!(cause.contains("No space left on device"), "{cause}");
    assert_eq!(fs::read_dir(world.state().join("slugs")).expect("it is there").count(), 0);
    world.stop_pm();
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        // Lazily: whatever still uses it keeps it until then.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
