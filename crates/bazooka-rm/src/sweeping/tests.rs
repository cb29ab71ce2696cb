use std::os::unix::fs::symlink;

use tokio_util::sync::CancellationToken;
use visor::{
    names::ReleaseId,
    schema::{App, Extra},
};

use super::*;
use crate::{repos::view_fixture, storage::Storage};

const AT_ONCE: Duration = Duration::ZERO;
const LATER: Duration = Duration::from_secs(3_600);

fn app(name: &str) -> AppName {
    name.parse().expect("valid")
}

/// Slugs in a folder, and in a shared storage beside it if asked for.
async fn stored(is_shared: bool) -> (tempfile::TempDir, Slugs, Digest, Digest) {
    let dir = tempfile::tempdir().expect("a folder");
    let layout = Layout::open(&dir.path().join("state")).expect("made");
    let shared =
        is_shared.then(|| Storage::open(&format!("file://{}/shared", dir.path().display())).expect("opened"));
    let slugs = Slugs::new(layout, shared);
    let mut names = Vec::new();
    for word in ["one", "two"] {
        names.push(store(&dir, &slugs, word).await);
    }
    let (two, one) = (names.pop().expect("two"), names.pop().expect("one"));
    (dir, slugs, one, two)
}

async fn store(dir: &tempfile::TempDir, slugs: &Slugs, word: &str) -> Digest {
    let tree = dir.path().join(word);
    fs::create_dir_all(&tree).expect("made");
    fs::write(tree.join("file"), word).expect("written");
    slugs.store(&tree, &CancellationToken::new()).await.expect("stored").slug.sha256
}

async fn is_there(slugs: &Slugs, sha256: &Digest) -> bool {
    slugs.find(sha256, false).await.expect("it answers").is_some()
}

#[tokio::test]
async fn a_slug_that_no_rev_names_goes_after_some_days_and_not_before() {
    for is_shared in [false, true] {
        let copies = if is_shared { 2 } else { 1 };
        let (dir, slugs, one, two) = stored(is_shared).await;
        let sweep = async |needed: &[&Digest], time| {
            let needed = needed.iter().copied().cloned().collect();
            slugs.sweep(needed, time).await.expect("it can be swept")
        };
        assert_eq!(sweep(&[&one], AT_ONCE).await, 0, "the first sweep only marks");
        assert_eq!(sweep(&[&one], LATER).await, 0, "its days are not over");
        // Named again, its time begins anew.
        assert_eq!(sweep(&[&one, &two], AT_ONCE).await, 0);
        assert_eq!(sweep(&[&one], AT_ONCE).await, 0);
        // So does that of a slug that was built again.
        assert_eq!(store(&dir, &slugs, "two").await, two);
        assert_eq!(sweep(&[&one], AT_ONCE).await, 0);
        assert!(is_there(&slugs, &two).await);
        assert_eq!(sweep(&[&one], AT_ONCE).await, copies);
        assert!(is_there(&slugs, &one).await && !is_there(&slugs, &two).await);
        assert_eq!(sweep(&[&one], AT_ONCE).await, 0, "twice is once");
        assert_eq!(store(&dir, &slugs, "two").await, two);
        assert!(is_there(&slugs, &two).await, "it can be stored again");
    }
}

#[tokio::test]
async fn a_slug_that_went_while_its_rev_was_registered_is_stored_again() {
    let (dir, slugs, one, _) = stored(true).await;
    let shared = Storage::open(&format!("file://{}/shared", dir.path().display())).expect("opened");
    let name = crate::storage::slug(&one);
    let size_bytes = shared.size(&name).await.expect("it answers").expect("it is there");
    shared.remove(vec![name.clone()]).await.expect("removed");
    let slug = visor::schema::Slug { sha256: one, size_bytes };
    slugs.ensure(&slug).await.expect("stored");
    assert_eq!(shared.size(&name).await.expect("it answers"), Some(size_bytes));
}

#[test]
fn while_some_revs_are_unknown_no_slug_counts_as_unneeded() {
    let known = || Known {
        apps: [(app("shop"), Arc::new(view_fixture::view(&['1', '2'], &[])))].into(),
        complete: true,
        ..Known::default()
    };
    assert_eq!(needed_slugs(&known()).map(|slugs| slugs.len()), Some(2));
    assert_eq!(needed_slugs(&Known { complete: false, ..known() }), None);
    assert_eq!(needed_slugs(&Known { has_strays: true, ..known() }), None);
    assert_eq!(needed_slugs(&Known { unreadable: [app("shop")].into(), ..known() }), None);
}

#[tokio::test]
async fn a_cache_goes_with_its_app_unused_or_too_large_but_not_under_a_build() {
    let dir = tempfile::tempdir().expect("a folder");
    let layout = Layout::open(dir.path()).expect("made");
    let now: Timestamp = "2026-03-01T12:00:00Z".parse().expect("a time");
    let names = ["gone", "unused", "large", "builds", "small"];
    for name in names {
        let cache = layout.cache(&app(name)).join("deep/er");
        fs::create_dir_all(&cache).expect("made");
        let bytes = if matches!(name, "large" | "builds") { 3 << 20 } else { 10 };
        fs::write(cache.join("file"), vec![1; bytes]).expect("written");
        symlink("/", cache.join("link")).expect("made");
    }
    let of = |built: Timestamp| {
        let mut view = view_fixture::view(&['1'], &[('1', visor::schema::ReleaseStatus::Released)]);
        view.revs.values_mut().for_each(|rev| rev.value.at = built);
        assert!(view.releases.contains_key(&ReleaseId(1)));
        Arc::new(view)
    };
    let mut known = Known { complete: true, ..Known::default() };
    for name in &names[1..] {
        known.apps.insert(app(name), of(now));
    }
    known.apps.insert(app("unused"), of("2026-01-20T12:00:00Z".parse().expect("a time")));
    let turns = Arc::<Turns>::default();
    let _building = turns.try_take(&app("builds")).expect("it is free");
    let (apps, _following) = Apps::new(visor::store::model::ModelStore::new().shared());
    let sweeper = Sweeper {
        apps,
        slugs: Slugs::new(layout.clone(), None),
        layout: layout.clone(),
        turns,
        slugs_for: LATER,
        cache_bytes: 1 << 20,
        metrics: RmMetrics::register(&mut Default::default()),
        sources: Sources::new(visor::clock::WallClock::new(move || now), || 7),
    };
    sweeper.sweep_caches(&known, &mut BTreeMap::new()).await;
    let left: Vec<&str> = names.into_iter().filter(|name| layout.cache(&app(name)).exists()).collect();
    assert_eq!(left, ["builds", "small"]);
    assert!(layout.tools().exists() && Path::new("/etc").exists());
}

#[test]
fn an_app_that_was_never_built_counts_from_its_registration() {
    let mut view = AppView::default();
    assert_eq!(last_build(&view), None);
    let created_at = Timestamp::UNIX_EPOCH;
    let own =
        App { owner: "ada".into(), created_at, token: "t".into(), destroying: false, extra: Extra::new() };
    view.app = Some(view_fixture::at(own));
    assert_eq!(last_build(&view), Some(created_at));
}
