//! Cases of a whole plan: what is placed where, and what is left alone.

use visor::schema::{Desired, Fault, State};

use super::super::fixture::{World, app, seconds, serving};

mod placement {
    use super::*;

    #[test]
    fn what_is_wanted_and_not_there_is_placed_in_turn_on_the_hosts() {
        assert_eq!(
            app().scaled("web", 3).steps(),
            ["place web.0@v1 on host1", "place web.1@v1 on host2", "place web.2@v1 on host1"]
        );
    }

    #[test]
    fn what_is_there_is_not_placed_twice() {
        assert!(app().scaled("web", 1).placed(1, "web@v1", "host1").steps().is_empty());
    }

    #[test]
    fn a_new_instance_takes_the_lowest_free_place() {
        let mut world = serving(3).scaled("web", 3).meant_to(1, Desired::Stop);
        assert_eq!(world.steps(), ["place web.0@v1 on host2"]);
    }

    #[test]
    fn the_first_instance_of_each_service_comes_before_the_second_of_any() {
        let mut world = World::new().hosts(1);
        world.edit_host("host1", |host| host.capacity.instances = 2);
        let mut world =
            world.app("a").released("web").scaled("web", 5).app("b").released("web").scaled("web", 1);
        let steps = world.steps();
        assert_eq!(
            steps,
            [
                "place web.0@v1 on host1",
                "pend web: 4 short of v1: the only host can't take it",
                "place web.0@v1 on host1",
            ]
        );
    }

    #[test]
    fn a_shortfall_is_said_once_with_the_hosts_refusals() {
        let mut world = app().scaled("web", 1);
        world.mark("host1", |meta| meta.cordoned = true);
        world.edit_host("host2", |host| host.capacity.instances = 0);
        let plan = world.plan();
        let crate::converge::step::Act::Pend { pending: Some(hindrance), .. } = &plan.steps[0].act else {
            panic!("{plan:?}")
        };
        let refusals: Vec<String> =
            hindrance.refusals().iter().map(|(host, why)| format!("{host} {why}")).collect();
        assert_eq!(refusals, ["host1 is cordoned", "host2 is full"], "for readers of the release before");
        assert_eq!(plan.waiting_for_capacity.len(), 1);
        let row = world.row(visor::schema::Pending {
            release: hindrance.release,
            short: hindrance.short,
            reason: hindrance.reason.clone(),
            refusals: hindrance.refusals(),
            reasons: hindrance.reasons.clone(),
            since: world.now.wall,
            extra: Default::default(),
        });
        assert_eq!(row.lines(), ["host1: is cordoned", "host2: is full"]);
        let web = world.proc("web");
        // The release before lists hosts alone.
        let older = visor::schema::Pending { reasons: Default::default(), ..row.value.clone() };
        assert_eq!(older.lines(), row.lines());
        let older = world.row(older);
        world.view().pending.insert(web.clone(), older);
        assert!(!world.steps().is_empty(), "it is written anew");
        world.view().pending.insert(web, row);
        assert!(world.steps().is_empty());
        world.mark("host1", |_| {});
        assert_eq!(world.steps(), ["place web.0@v1 on host1", "clear web"]);
    }

    #[test]
    fn what_is_too_much_for_one_plan_is_placed_by_the_next() {
        let mut world = World::new().hosts(90).app("a").released("web").scaled("web", 8_500);
        let plan = world.plan();
        assert_eq!(plan.steps.len(), 8_000);
        assert_eq!(plan.look_again.get(&world.name("a")), Some(&world.now.clock));
        assert!(plan.waiting_for_capacity.is_empty());
    }

    #[test]
    fn a_host_where_it_ran_out_of_memory_is_the_last_choice() {
        let mut world = app().scaled("web", 1).placed(1, "web@v1", "host1");
        world.say(1, State::Failed, |status| status.fault = Some(Fault::OutOfMemory));
        assert_eq!(world.steps(), ["archive 1", "place web.0@v1 on host2"]);
    }

    #[test]
    fn a_host_whose_fault_it_was_is_not_tried_again_at_once_even_if_it_is_the_only_one() {
        let mut world = World::new().hosts(1).app("a").released("web").scaled("web", 1);
        world = world.placed(1, "web@v1", "host1");
        world.say(1, State::Failed, |status| {
            status.fault = Some(Fault::Host);
            status.cause = Some("the disk is full".into());
        });
        let plan = world.plan();
        assert_eq!(plan.waiting_for_capacity.len(), 1);
        assert!(plan.look_again.values().all(|at| *at > world.now.clock));
        assert_eq!(world.after(seconds(1)).steps(), ["archive 1", "place web.0@v1 on host1"]);
    }
}

mod what_is_not_there {
    use super::*;

    #[test]
    fn an_empty_image_stops_nothing() {
        let mut world = World::new();
        assert_eq!(world.plan(), Default::default());
    }

    #[test]
    fn an_app_whose_rows_are_missing_is_left_alone() {
        type Break = fn(&mut World);
        let broken: [(&str, Break); 5] = [
            ("apps/a ", |w| w.view().app = None),
            ("apps/a/releases/v1 ", |w| w.view().releases.clear()),
            ("apps/a/revs/", |w| w.view().revs.clear()),
            ("apps/a/formation/web ", |w| w.view().formation.clear()),
            ("apps/a/head ", |w| w.view().head = None),
        ];
        for (key, break_it) in broken {
            let mut world = serving(2);
            break_it(&mut world);
            let plan = world.plan();
            assert!(plan.steps.is_empty(), "{key}: {:?}", plan.steps);
            let why: Vec<&String> = plan.blocked.values().collect();
            assert!(why[0].starts_with(key) && why[0].ends_with("is missing"), "{why:?}");
        }
    }

    #[test]
    fn an_app_with_a_row_that_cannot_be_read_is_left_alone() {
        let mut world = serving(2);
        world.view().formation.clear();
        world.snapshot.unreadable.insert("apps/a/formation/web".into(), "no JSON".into());
        let plan = world.plan();
        assert!(plan.steps.is_empty() && plan.blocked.len() == 1, "{plan:?}");
    }

    #[test]
    fn an_instance_whose_rows_cannot_be_read_counts_and_is_left_alone() {
        for key in ["assigned/host1/1", "status/host1/1"] {
            let mut world = serving(2);
            let host = world.host("host1");
            let view = world.snapshot.hosts.get_mut(&host).expect("it is there");
            if key.starts_with("assigned") {
                view.assigned.clear()
            } else {
                view.status.clear()
            }
            world.snapshot.unreadable.insert(key.into(), "no JSON".into());
            assert!(world.steps().is_empty());
            assert_eq!(world.scaled("web", 1).steps(), ["stop 2"]);
        }
    }

    #[test]
    fn a_host_whose_row_cannot_be_read_is_not_taken_for_gone() {
        let mut world = serving(2);
        world.lose("host1");
        world.snapshot.unreadable.insert("hosts/host1".into(), "no JSON".into());
        assert!(world.after(seconds(60)).steps().is_empty());
    }
}
