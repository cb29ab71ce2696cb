//! The page that shows a cluster, in a real browser.

use std::{
    io::{Read, Write},
    net::TcpListener,
};

use bazooka_tests::{Browser, Cluster, Endpoint, SOON, get, until};

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

/// What another site's page tries, with each URL of `targets`: to register an app in each way that needs no permission, then
/// with permission, and to read.
const EVIL: &str = r#"<!doctype html><title>evil</title><iframe name=hidden></iframe><script>
    const app = JSON.stringify({name: 'evil', owner: 'eve', token: 't'});
    window.done = [];
    window.read = [];
    const attempts = [
        {method: 'POST', mode: 'no-cors', body: app},
        {method: 'POST', mode: 'no-cors', body: app, headers: {'content-type': 'text/plain'}},
        {method: 'POST', mode: 'cors', body: app},
        {method: 'POST', mode: 'cors', body: app, headers: {'content-type': 'application/json'}},
        {method: 'GET', mode: 'cors'},
    ];
    (async () => {
        for (const target of targets) {
            for (const path of ['/apps', '/metrics', '/live']) {
                for (const attempt of attempts) {
                    try {
                        const answer = await fetch(target + path, attempt);
                        if (answer.type !== 'opaque') window.read.push(target + path + ' ' + answer.status);
                    } catch (error) {}
                    window.done.push(target);
                }
            }
            const form = document.createElement('form');
            Object.assign(form, {method: 'POST', action: target + '/apps', enctype: 'text/plain', target: 'hidden'});
            const input = document.createElement('input');
            Object.assign(input, {name: app.slice(0, -1) + ', "x": "', value: '"}'});
            form.append(input);
            document.body.append(form);
            form.submit();
        }
        window.over = true;
    })();
</script>"#;

#[test]
fn another_sites_page_can_have_nothing_done_and_read_nothing() {
    let cluster = Cluster::start();
    let daemons = [Endpoint::Rm, Endpoint::Host(1), Endpoint::Proxy, Endpoint::Converger];
    let targets: Vec<String> = daemons.map(|daemon| format!("http://{}", cluster.at(daemon))).into();
    let page = EVIL.replace("targets)", &format!("{targets:?})"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let evil = listener.local_addr().expect("it listens");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4_096]);
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\r\n",
                page.len()
            );
            let _ = stream.write_all(format!("{head}{page}").as_bytes());
        }
    });
    let rm = cluster.at(Endpoint::Rm);
    let (ip, port) = rm.split_once(':').expect("it has a port");
    // As after a rebinding: the attacker's name leads to this cluster's rm.
    let mut browser = Browser::with(&[&format!("--host-resolver-rules=MAP evil.example {ip}")]);
    browser.open(&format!("http://{evil}/"), 800, 600);
    until("the page has tried everything", SOON * 2, || match browser.eval("window.over === true") {
        done if done == true => Ok(()),
        _ => Err(browser.eval("window.done.length").to_string()),
    });
    assert_eq!(browser.eval("window.read"), serde_json::json!([]), "the page has read something");
    browser.open(&format!("http://evil.example:{port}/"), 800, 600);
    browser.sees(&["may be anybody's name"]);
    assert!(
        cluster.snapshot().apps.is_empty(),
        "an app was registered: {:?}",
        cluster.snapshot().apps.keys()
    );
    let refused = get(&format!("http://{rm}/metrics"), None).body;
    for reason in ["origin", "host"] {
        let line = format!("bazooka_endpoint_requests_refused_total{{reason=\"{reason}\"}}");
        assert!(refused.contains(&line), "{refused}");
    }
}
