//! Pushes over SSH, with the system's sshd between.

use std::{path::PathBuf, process::Command};

use bazooka_tests::{Cluster, ClusterOptions, Endpoint, OPERATOR, Part, Repo, SOON, example, until};

/// The system's sshd with the rm's keys, as root: that user alone is sure to be there.
fn sshd(cluster: &Cluster) -> Part {
    let folder = cluster.folder("sshd");
    std::fs::create_dir_all(&folder).expect("a folder");
    // Where Debian's sshd drops its rights into; its unit would make it.
    std::fs::create_dir_all("/run/sshd").expect("a folder");
    let key = keygen(&cluster.folder("sshd/host"));
    let config = folder.join("config");
    let text = format!(
        "ListenAddress {}\nPidFile none\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin forced-commands-only\nAcceptEnv GIT_PROTOCOL\n",
        cluster.at(Endpoint::Sshd),
        key.display(),
        cluster.folder("authorized_keys").display(),
    );
    std::fs::write(&config, text).expect("the file can be written");
    let mut command = Command::new("/usr/sbin/sshd");
    command.arg("-D").arg("-e").arg("-f").arg(&config);
    let part = Part::start("sshd", &folder.join("log"), &mut command);
    until("sshd listens", SOON, || match part.log() {
        log if log.contains("Server listening") => Ok(()),
        log => Err(log),
    });
    part
}

fn keygen(path: &std::path::Path) -> PathBuf {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "a laptop", "-f"])
        .arg(path)
        .status();
    assert!(made.is_ok_and(|status| status.success()), "ssh-keygen makes a key");
    path.to_owned()
}

/// Git with one's own key and no other.
fn with_key(key: &std::path::Path) -> String {
    format!(
        "ssh -F none -i {} -o IdentitiesOnly=yes -o IdentityAgent=none -o BatchMode=yes -o StrictHostKeyChecking=no \
         -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        key.display()
    )
}

#[test]
fn a_push_over_ssh_is_its_keys_owners_and_nobody_elses() {
    let options = ClusterOptions { identities: true, ssh: true, ..ClusterOptions::default() };
    let cluster = Cluster::with(options);
    let _sshd = sshd(&cluster);
    let operator = cluster.repo_of("operating", OPERATOR);
    let mut keys = Vec::new();
    for who in ["ada", "eve"] {
        cluster.person(who);
        operator.bazooka(&["access", "grant", who]).ok();
        keys.push(keygen(&cluster.folder("id").join(who).join("ssh")));
    }
    let public = |key: &std::path::Path| key.with_extension("pub").display().to_string();
    let repo = cluster.repo_of("goto-rocket", "ada");
    repo.copy(&example("goto-rocket"));
    repo.commit("go to rocket");
    let private = repo.bazooka(&["keys", "add", &keys[0].display().to_string()]).exits(2);
    assert!(private.stderr.contains("is a private key"), "{}", private.stderr);
    repo.bazooka(&["keys", "add", &public(&keys[0])]).ok();
    let listed = repo.bazooka(&["keys"]).ok().stdout;
    assert!(listed.contains("SHA256:") && listed.contains("a laptop"), "{listed}");
    let init = repo.bazooka(&["init", "--ssh"]).ok().stdout;
    assert!(init.contains("remote entry created"), "{init}");
    let as_ada = with_key(&keys[0]);
    let git = |repo: &Repo, ssh: &str, args: &[&str]| repo.git_with(&[("GIT_SSH_COMMAND", ssh)], args);
    // The file follows the row in a moment.
    until("the key is sshd's", SOON, || match std::fs::read_to_string(cluster.folder("authorized_keys")) {
        Ok(text) if text.contains("ssh-ed25519") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let pushed = git(&repo, &as_ada, &["push", "bazooka", "master"]).ok();
    assert!(pushed.stderr.contains("released") || pushed.stderr.contains("v1"), "{}", pushed.stderr);
    let releases = repo.bazooka(&["releases", "--json"]).ok().stdout;
    assert!(releases.contains("\"ada\""), "{releases}");
    git(&repo, &as_ada, &["fetch", "bazooka"]).ok();

    // Another developer's key: not this app, and no shell.
    let other = cluster.repo_of("goto-rocket", "eve");
    other.copy(&example("goto-rocket"));
    other.commit("mine now");
    other.bazooka(&["keys", "add", &public(&keys[1])]).ok();
    let url = repo.git(&["remote", "get-url", "bazooka"]).ok().stdout;
    other.git(&["remote", "add", "bazooka", url.trim()]).ok();
    let as_eve = with_key(&keys[1]);
    until("the second key is sshd's", SOON, || {
        let text = std::fs::read_to_string(cluster.folder("authorized_keys")).unwrap_or_default();
        if text.matches("ssh-ed25519").count() == 2 { Ok(()) } else { Err(text) }
    });
    for args in [&["push", "--force", "bazooka", "master"][..], &["fetch", "bazooka"]] {
        let refused = git(&other, &as_eve, args).exits(128);
        assert!(refused.stderr.contains("eve may not push to or fetch 'goto-rocket'"), "{}", refused.stderr);
    }
    until("both refusals stand in the audit", SOON, || {
        let audit = operator.bazooka(&["audit", "--json", "-a", "goto-rocket"]).ok().stdout;
        let entries: Vec<serde_json::Value> = serde_json::from_str(&audit).expect("JSON");
        let stands = |service: &str| {
            let what = format!("refused: {service} '/goto-rocket.git' over SSH");
            entries.iter().any(|entry| entry["what"] == what && entry["who"] == "eve")
        };
        if stands("git-receive-pack") && stands("git-upload-pack") { Ok(()) } else { Err(audit) }
    });
    let words: Vec<&str> = as_eve.split(' ').collect();
    let at = cluster.socket(Endpoint::Sshd);
    let (ip, port) = (at.ip().to_string(), at.port().to_string());
    for (command, wanted) in
        [(None, "hello eve"), (Some("id"), "only git's"), (Some("git-receive-pack '../x'"), "not valid")]
    {
        let args: Vec<&str> = words[1..]
            .iter()
            .copied()
            .chain(["-p", port.as_str(), "-l", "root", ip.as_str()])
            .chain(command)
            .collect();
        let ran = bazooka_tests::Ran::of(other.command(words[0], &args));
        assert!(
            ran.code != 0 && ran.stderr.contains(wanted) && ran.stdout.is_empty(),
            "{command:?}: {ran:?}"
        );
    }

    // A key that is taken away opens nothing.
    let fingerprint =
        listed.split_whitespace().find(|word| word.starts_with("SHA256:")).expect("a fingerprint");
    repo.bazooka(&["keys", "remove", fingerprint]).ok();
    until("the key is sshd's no more", SOON, || {
        let text = std::fs::read_to_string(cluster.folder("authorized_keys")).unwrap_or_default();
        if text.matches("ssh-ed25519").count() == 1 { Ok(()) } else { Err(text) }
    });
    let gone = git(&repo, &as_ada, &["fetch", "bazooka"]).exits(128);
    assert!(gone.stderr.contains("Permission denied"), "{}", gone.stderr);
}
