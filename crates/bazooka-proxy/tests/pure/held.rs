//! The rows that a proxy keeps in memory.

use bazooka_proxy::image::RoutingImage;
use visor::{keys::Key, mirror::Image, snapshot::Snapshot};

use crate::image::entry;

#[test]
fn what_routes_and_the_directory_are_made_from_is_held_and_nothing_else() {
    let mut image = RoutingImage::default();
    for held in [
        "apps/shop",
        "apps/shop/revs/0123456789012345678901234567890123456789",
        "apps/shop/procs/web",
        "ports/8501",
        "schema",
        "apps/shop/formation/web",
        "assigned/host1/7",
        "status/host1/7",
        "hosts/host1",
        "hostmeta/host1",
        "rms/rm1",
        "proxies/proxy1",
        "domains/www.example.org",
        &Key::Leader.to_string(),
    ] {
        assert!(image.holds(held), "{held}");
    }
    for left_out in [
        "apps/shop/envs/e1",
        "apps/shop/releases/v1",
        "apps/shop/head",
        "apps/shop/instances/7",
        "apps/shop/pending/web",
        "wraps/shop/e1",
        "private/wraps/shop/e1",
        "sealed/host1/shop/e1",
        "of-a-newer-version/7",
    ] {
        assert!(!image.holds(left_out), "{left_out}");
    }
    image.put(&entry("apps/shop/procs/web", r#"{"port":8501}"#));
    assert_eq!(image.snapshot().apps.len(), 1);
    assert_eq!(*image.fresh().snapshot(), Snapshot::default());
}
