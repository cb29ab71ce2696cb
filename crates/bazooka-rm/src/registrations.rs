//! The bound of the apps that one person may have.
//!
//! Owns the count. An app costs the cluster rows, and etcd a role with its rights, so nobody registers them without end.
//! Each rm counts by its own image and by what it registered itself, so two rms together may let a few more in.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};
use visor::names::AppName;

use crate::apps::Apps;

/// The time after which a registration is in the image, or is gone again.
const IN_IMAGE: Duration = Duration::from_secs(60);

/// The person has too many apps already.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{owner} has {has} apps, and {most} are the most that one person may have here")]
pub struct TooManyApps {
    owner: String,
    has: usize,
    most: usize,
}

/// The apps of each person. Cheap to clone.
#[derive(Clone)]
pub struct Registrations {
    apps: Apps,
    most: usize,
    /// The registrations by this rm that its image may not have yet, with their owners.
    recent: Arc<Mutex<BTreeMap<AppName, (String, Instant)>>>,
}

impl Registrations {
    /// Returns the bound on the apps of an image.
    pub fn new(apps: Apps, most: u32) -> Registrations {
        Registrations { apps, most: usize::try_from(most).unwrap_or(usize::MAX), recent: Arc::default() }
    }

    /// Registers an app if its owner may have one more. An app that exists is none more.
    ///
    /// Registrations follow each other, so that those sent at once are counted too.
    ///
    /// # Errors
    /// [`TooManyApps`]; then nothing was registered.
    pub async fn within_bound<T, E>(
        &self,
        owner: &str,
        name: &AppName,
        registering: impl Future<Output = Result<T, E>>,
    ) -> Result<Result<T, E>, TooManyApps> {
        let mut recent = self.recent.lock().await;
        let known = self.apps.known().apps;
        recent.retain(|name, (_, at)| !known.contains_key(name) && at.elapsed() < IN_IMAGE);
        if !known.contains_key(name) && !recent.contains_key(name) {
            let rows = known.values().filter_map(|view| view.app.as_ref());
            let has = rows.filter(|app| app.owner == owner && !app.destroying).count()
                + recent.values().filter(|(of, _)| of == owner).count();
            if has >= self.most {
                return Err(TooManyApps { owner: owner.to_owned(), has, most: self.most });
            }
        }
        let registered = registering.await;
        if registered.is_ok() && !known.contains_key(name) {
            recent.insert(name.clone(), (owner.to_owned(), Instant::now()));
        }
        Ok(registered)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use visor::{
        store::{SharedStore, model::ModelStore},
        testing::until,
        visor::Visor,
    };

    use super::*;

    #[tokio::test]
    async fn one_persons_apps_are_bounded_also_when_they_come_at_once() {
        let store: SharedStore = Arc::new(ModelStore::new());
        let visor = Visor::new(store.clone());
        visor.set_up().await.expect("it is in memory");
        let (apps, following) = Apps::new(store);
        // The image follows only from the middle of the test on.
        let bound = Registrations::new(apps.clone(), 3);
        let register = async |owner: &str, name: &str| {
            let name: AppName = name.parse().expect("valid");
            let registering = visor.register_app(&name, owner, "token", Timestamp::UNIX_EPOCH);
            bound.within_bound(owner, &name, registering).await.map(|done| done.expect("it is in memory"))
        };
        for name in ["a", "b", "c", "c"] {
            assert_eq!(register("eve", name).await, Ok(()), "{name}");
        }
        let error = register("eve", "d").await.expect_err("three are the most");
        assert_eq!(error.to_string(), "eve has 3 apps, and 3 are the most that one person may have here");
        assert_eq!(register("ada", "e").await, Ok(()));
        let _following = tokio::spawn(following.run());
        let shows = async |count: usize, what: &str| {
            until(what, Duration::from_secs(10), || async {
                let known = apps.known().apps;
                let there =
                    known.values().filter(|view| view.app.as_ref().is_some_and(|app| !app.destroying));
                match there.count() {
                    n if n == count => Ok(()),
                    n => Err(format!("{n} apps")),
                }
            })
            .await;
        };
        shows(4, "the image has them").await;
        assert!(register("eve", "d").await.is_err());
        assert_eq!(register("eve", "a").await, Ok(()), "the same registration once more");
        visor.destroy_app(&"a".parse().expect("valid")).await.expect("it is there");
        shows(3, "one is being destroyed").await;
        assert_eq!(register("eve", "d").await, Ok(()));
    }
}
