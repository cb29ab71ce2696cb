//! The page that shows a cluster, in a real browser.

use bazooka_tests::{Browser, Cluster, get};

#[test]
fn the_page_shows_what_runs_and_changes_as_it_does() {
    let cluster = Cluster::start();
    let url = cluster.snapshot().rms.values().next().expect("an rm serves").url.clone();
    let mut browser = Browser::start();
    browser.open(&url, 1280, 900);
    browser.sees(&["No app yet", "host1", "converger", "live"]);

    let rocket = cluster.rocket();
    rocket.git(&["push", "bazooka", "master"]).ok();
    rocket.bazooka(&["scale", "-n", "3", "web"]).ok();
    // Nobody has loaded it again.
    browser.sees(&["goto-rocket", "3 of 3", "v1", "push of"]);
    assert_eq!(browser.eval("document.querySelectorAll('#zones .cell.running').length"), 3);
    assert_eq!(browser.eval("performance.getEntriesByType('navigation').length"), 1);
    // What isn't wanted is gone from it as well.
    rocket.bazooka(&["scale", "-n", "1", "web"]).ok();
    browser.sees(&["1 of 1", "scaled down"]);

    // On a phone nothing is cut off, and nothing has to be pushed aside to be read.
    browser.open(&url, 360, 740);
    browser.sees(&["goto-rocket", "1 of 1", "live"]);
    assert_eq!(browser.eval("document.documentElement.scrollWidth <= 360"), true);

    // All of it comes from the rm, and none of it is a place for another's script.
    let policy = "(r => (r.open('GET', '/', false), r.send(), r.getResponseHeader('content-security-policy')))(new XMLHttpRequest())";
    let policy = browser.eval(policy);
    assert!(policy.as_str().is_some_and(|policy| policy.contains("default-src 'none'")), "{policy}");
    let foreign =
        "performance.getEntriesByType('resource').filter(r => !r.name.startsWith(location.origin)).length";
    assert_eq!(browser.eval(foreign), 0);
    if let Some(folder) = std::env::var_os("BAZOOKA_PICTURES") {
        let folder = std::path::PathBuf::from(folder);
        browser.shoot(&folder.join("page-phone.png"));
        browser.open(&url, 1280, 900);
        browser.sees(&["goto-rocket", "live"]);
        browser.shoot(&folder.join("page.png"));
    }
    // Who goes without a word does no harm.
    drop(browser);
    assert_eq!(get(&format!("{url}/healthz"), None).status, 200);
}
