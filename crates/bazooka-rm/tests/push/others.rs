//! Apps in Ruby, PHP and Java.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use crate::{
    languages::{procs, push, pushed, rev},
    rig::Rig,
};

/// Runs a line in an unpacked slug as an instance would.
fn run(slug: &Path, line: &str) -> Output {
    let line = format!("for f in .profile.d/*.sh; do [ -r $f ] && . ./$f; done; {line}");
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).current_dir(slug).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
    shell.output().expect("sh is there")
}

#[track_caller]
fn says(slug: &Path, line: &str, wanted: &str) {
    let output = run(slug, line);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), wanted, "{output:?}");
}

/// Makes a gem, and returns its file.
fn gem(dir: &Path) -> std::path::PathBuf {
    fs::create_dir_all(dir.join("lib")).expect("made");
    fs::write(dir.join("lib/hello.rb"), "HELLO = 'hello from a gem'\n").expect("written");
    let spec = "Gem::Specification.new do |s|\n  s.name = 'hello'\n  s.version = '1.0.0'\n  s.summary = 'x'\n  \
                s.authors = ['x']\n  s.files = ['lib/hello.rb']\nend\n";
    fs::write(dir.join("hello.gemspec"), spec).expect("written");
    let built = Command::new("gem").args(["build", "-q", "hello.gemspec"]).current_dir(dir).output();
    assert!(built.as_ref().is_ok_and(|built| built.status.success()), "{built:?}");
    dir.join("hello-1.0.0.gem")
}

#[tokio::test]
#[ignore = "long form: it takes Ruby and bundler"]
async fn gems_of_a_lock_file_are_in_the_slug_without_those_for_tests() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("shop").await;
    fs::create_dir_all(folder.dir.join("vendor/cache")).expect("made");
    let file = gem(&rig.dir.path().join("gem"));
    fs::copy(file, folder.dir.join("vendor/cache/hello-1.0.0.gem")).expect("copied");
    let gemfile = "source 'https://gems.example.org'\ngem 'hello'\ngroup :test do\n  gem 'other'\nend\n";
    let lock = "GEM\n  remote: https://gems.example.org/\n  specs:\n    hello (1.0.0)\n    other (1.0.0)\n\n\
                PLATFORMS\n  ruby\n\nDEPENDENCIES\n  hello\n  other\n";
    let files =
        [("Gemfile", gemfile), ("Gemfile.lock", lock), ("config.ru", "run ->(env) { [200, {}, []] }\n")];
    push(&folder, &files).await.ok();
    let first = rev(&rig, &app).await;
    let command = "exec bundle exec rackup -p $PORT -o 0.0.0.0";
    assert_eq!((first.kind.as_str(), procs(&first)), ("ruby", [("web", command)].into()));
    let slug = rig.unpacked(&first, "first");
    says(&slug, "bundle exec ruby -e 'require \"hello\"; puts HELLO'", "hello from a gem");
    says(&slug, "echo $RACK_ENV $RAILS_ENV $RAILS_LOG_TO_STDOUT", "production production enabled");
    let said = push(&folder, &[("app.rb", "")]).await.ok();
    let kept = "Gemfile.lock is as it was: its gems are kept from an earlier build";
    assert!(said.remote_lines().contains(&kept), "{said:?}");
    push(&folder, &[("Gemfile", &format!("{gemfile}gem 'more'\n"))])
        .await
        .rejected("You have added to the Gemfile");
}

#[tokio::test]
#[ignore = "long form: it takes Ruby and bundler"]
async fn a_gemfile_without_a_lock_file_is_refused() {
    let rig = Rig::start().await;
    let (_, folder) = rig.app("shop").await;
    push(&folder, &[("Gemfile", ""), ("config.ru", "")])
        .await
        .rejected("there is a Gemfile and no Gemfile.lock; run `bundle lock`, commit Gemfile.lock");
}

#[tokio::test]
#[ignore = "long form: it takes PHP and composer"]
async fn packages_of_a_composer_lock_are_in_the_slug() {
    let rig = Rig::start().await;
    let (_, _, plain) = pushed(&rig, "plain", &[("index.php", "<?php echo 'hello';\n")]).await;
    says(&plain, "php index.php", "hello");
    let (app, folder) = rig.app("shop").await;
    let manifest = |more: &str| {
        format!(
            r#"{{"repositories": [{{"packagist.org": false}}, {{"type": "path", "url": "packages/hello",
            "options": {{"symlink": false}}}}], "require": {{{more}"x/hello": "1.0.0"}}}}"#
        )
    };
    let package = r#"{"name": "x/hello", "version": "1.0.0", "autoload": {"files": ["hello.php"]}}"#;
    let files = [
        ("composer.json", manifest("")),
        ("packages/hello/composer.json", package.to_owned()),
        ("packages/hello/hello.php", "<?php const HELLO = 'hello from a package';\n".to_owned()),
        ("public/index.php", "<?php require '../vendor/autoload.php'; echo HELLO;\n".to_owned()),
        (".gitignore", "vendor\n".to_owned()),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let said = push(&folder, &files).await.ok();
    assert!(said.stderr.contains("there is no composer.lock"), "{said:?}");
    let locked = Command::new("composer")
        .args(["update", "-q", "--no-interaction"])
        .env("COMPOSER_ALLOW_SUPERUSER", "1")
        .current_dir(&folder.dir)
        .status();
    assert!(locked.is_ok_and(|locked| locked.success()));
    let said = push(&folder, &[]).await.ok();
    assert!(!said.stderr.contains("there is no composer.lock"), "{said:?}");
    let first = rev(&rig, &app).await;
    assert_eq!(procs(&first), [("web", "exec php -S 0.0.0.0:$PORT -t public")].into());
    says(&rig.unpacked(&first, "first"), "cd public; php index.php", "hello from a package");
    push(&folder, &[("composer.json", &manifest("\"php\": \">=7\", "))])
        .await
        .rejected("lock file is not up to date");
}

#[tokio::test]
#[ignore = "long form: it takes a compiler for Java"]
async fn java_at_the_top_or_in_a_jar_is_built_and_runs() {
    let rig = Rig::start().await;
    let source = "public class Hello {\n  public static void main(String[] args) { System.out.println(\"hello\"); }\n}\n";
    let (_, plain, slug) = pushed(&rig, "plain", &[("Hello.java", source)]).await;
    let command = "exec java $JAVA_OPTS -cp classes Hello";
    assert_eq!((plain.kind.as_str(), procs(&plain)), ("java", [("web", command)].into()));
    says(&slug, command, "hello");
    // A stand-in for Maven's script, which would fetch Maven.
    let wrapper = "#!/bin/sh\necho \"$@\" | grep -q -- '-DskipTests' || exit 1\nmkdir -p target/made\n\
                   javac -d target/made src/main/java/Hello.java\n\
                   jar cfe target/hello-1.jar Hello -C target/made .\ntouch target/hello-1-sources.jar\n";
    let files = [("mvnw", wrapper), ("pom.xml", "<project/>\n"), ("src/main/java/Hello.java", source)];
    let (_, jar, slug) = pushed(&rig, "jar", &files).await;
    let command = "exec java $JAVA_OPTS -Dserver.port=$PORT -jar 'target/hello-1.jar'";
    assert_eq!(procs(&jar), [("web", command)].into());
    says(&slug, command, "hello");
}

#[tokio::test]
async fn a_language_that_this_machine_lacks_is_refused_by_name() {
    let (rig, _path) = Rig::on_a_bare_machine().await;
    for (name, files, wanted) in [
        ("rails", &[("Gemfile", ""), ("Gemfile.lock", "")][..], ("bundle", "ruby-bundler")),
        ("php", &[("composer.json", "{}"), ("index.php", "")], ("composer", "composer")),
        ("java", &[("pom.xml", "<project/>")], ("mvn", "maven")),
        ("go", &[("go.mod", "module x\n"), ("main.go", "package main\n")], ("go", "golang")),
        ("node", &[("package.json", r#"{"dependencies": {"ms": "2"}}"#)], ("npm", "npm")),
    ] {
        let (app, folder) = rig.app(name).await;
        let files: Vec<(&str, &str)> = files.iter().copied().chain([("Procfile", "web: x\n")]).collect();
        let (program, package) = wanted;
        push(&folder, &files).await.rejected(&format!(
            "this app is built with {program}, and this bazooka-rm has no {program}: its operator installs it (`apt install \
             {package}`)"
        ));
        assert!(rig.view(&app).await.revs.is_empty());
    }
}
