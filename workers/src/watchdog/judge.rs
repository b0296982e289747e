//! Whether a partition is stuck, and what to do about it. No clock, no broker: both are arguments.

use std::time::{Duration, Instant};

use crate::pulse::{Doing, State};

/// How long a batch may be with Postgres beyond the usual: longer than Postgres lets a statement run.
const BATCH_LONGEST: Duration = Duration::from_secs(60);
/// An idle consumer is subscribed anew after so many times the patience: messages that the broker has sent and that
/// were never heard count as delivered, not as ready, and nothing else would tell of them.
const IDLE: u32 = 4;

/// What is done for a stuck partition, the mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Its pipeline and channel anew.
    RebuildChannel,
    /// The consuming connection of this process anew, with all its channels.
    RebuildConnection,
    /// The process ends; its supervisor starts it again.
    Exit,
}

impl Step {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::RebuildChannel => "channel",
            Self::RebuildConnection => "connection",
            Self::Exit => "exit",
        }
    }
}

/// A look at a partition.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub now: Instant,
    /// Messages that the broker holds ready.
    pub ready: u32,
    /// Consumers that the broker knows.
    pub consumers: u32,
    /// Whether the broker takes messages; not so while an alarm is on.
    pub takes: bool,
    pub pulse: State,
}

/// What a look says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Well,
    /// Idle for long: let it subscribe anew, as a routine.
    Renew,
    /// Subscribed, or about to be, and the broker says that nobody is: it knows nothing of the queue while its leader is away.
    Unseen,
    /// Stuck, and this is to be done now.
    Stuck(Step),
    /// Stuck still; what was done may need time, or a person is needed.
    StillStuck,
}

/// What is remembered of a partition between two looks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    /// Since when something waits and nothing is finished.
    waiting_since: Option<Instant>,
    finished: Option<Instant>,
    last_step: Option<(Step, Instant)>,
    renewed: Option<Instant>,
    /// Since when the broker does not say what waits.
    unseen_since: Option<Instant>,
}

impl Memory {
    /// Notes that the broker does not say what waits; whether that has been so for longer than `patience`.
    pub(crate) fn is_unseen_for(&mut self, now: Instant, patience: Duration) -> bool {
        now.saturating_duration_since(*self.unseen_since.get_or_insert(now)) > patience
    }

    /// Judges a partition by a look at it.
    pub(crate) fn judge(&mut self, look: &Look, patience: Duration) -> Verdict {
        // Whoever would subscribe does so at once where nobody is subscribed.
        let is_there =
            matches!(look.pulse.doing, Doing::Listening | Doing::Subscribing | Doing::Waiting("rabbitmq"));
        if !is_there || look.consumers > 0 || look.ready > 0 {
            self.unseen_since = None;
        } else if self.is_unseen_for(look.now, patience) {
            // It may as well be that the consumer has vanished.
            return match self.nothing_waits(look, look.pulse.since, patience) {
                Verdict::Renew => Verdict::Renew,
                _ => Verdict::Unseen,
            };
        }
        let State { doing, since, finished, .. } = &look.pulse;
        if finished.is_some_and(|at| self.finished.is_none_or(|last| at > last)) {
            *self = Self { finished: *finished, renewed: self.renewed, ..Self::default() };
        }
        match doing {
            Doing::Subscribing | Doing::Listening if look.ready > 0 => {}
            // That the broker is away is no cause: it has just answered this look. That it takes nothing is one, where a
            // message is to go to the dead letters.
            Doing::Waiting("rabbitmq") if look.ready > 0 && look.takes => {}
            // A known cause: the store's own signs tell of it, and repairing the consumer would mend nothing.
            Doing::Waiting(_) | Doing::Paused => {
                let (finished, unseen_since) = (self.finished, self.unseen_since);
                *self = Self { finished, unseen_since, ..Self::default() };
                return Verdict::Well;
            }
            Doing::Broken(_) => {
                self.waiting_since = None;
                return Verdict::StillStuck;
            }
            Doing::Applying => {}
            Doing::Subscribing | Doing::Listening => return self.nothing_waits(look, *since, patience),
        }
        let waiting_since = *self.waiting_since.get_or_insert(look.now);
        let begun = if *doing == Doing::Applying { waiting_since.min(*since) } else { waiting_since };
        let begun = self.last_step.map_or(begun, |(_, at)| begun.max(at));
        // A consumer that was made anew has the whole patience from its subscribing on, which a busy broker may let wait;
        // not for ever.
        let begun = match self.last_step {
            Some((_, at)) if *doing == Doing::Listening => {
                let subscribed = if *since > at { *since } else { at + patience };
                begun.max(subscribed.min(at + patience))
            }
            _ => begun,
        };
        // A batch in hand waits for Postgres, which has its own limits: locks, statements.
        let limit = if *doing == Doing::Applying { patience + BATCH_LONGEST } else { patience };
        if look.now.saturating_duration_since(begun) < limit {
            return if self.last_step.is_some() { Verdict::StillStuck } else { Verdict::Well };
        }
        let step = self.next_step(look);
        self.last_step = Some((step, look.now));
        Verdict::Stuck(step)
    }

    /// Whether a step was taken a moment ago that has not helped yet. A partition that is not back by then is somebody
    /// else's.
    pub(crate) fn is_repairing(&self, now: Instant, patience: Duration) -> bool {
        self.last_step.is_some_and(|(_, at)| now.saturating_duration_since(at) < 2 * patience)
    }

    fn nothing_waits(&mut self, look: &Look, since: Instant, patience: Duration) -> Verdict {
        self.waiting_since = None;
        // After a repair the broker may have sent all to a consumer that is still deaf: only time tells.
        if let Some((_, at)) = self.last_step {
            if look.now.saturating_duration_since(at) < patience * IDLE {
                return Verdict::StillStuck;
            }
            self.last_step = None;
        }
        let idle_since = self.renewed.map_or(since, |renewed| renewed.max(since));
        let is_idle = look.pulse.doing == Doing::Listening
            && look.now.saturating_duration_since(idle_since) >= patience * IDLE;
        if !is_idle {
            return Verdict::Well;
        }
        self.renewed = Some(look.now);
        Verdict::Renew
    }

    fn next_step(&self, look: &Look) -> Step {
        match look.pulse.doing {
            // It was broken off and goes on all the same: it gives its thread no chance to end it.
            Doing::Applying if self.last_step.is_some_and(|(_, at)| look.pulse.since <= at) => Step::Exit,
            // Its connection is not the trouble, and Postgres is no better after a restart of ours.
            Doing::Applying => Step::RebuildChannel,
            // Somebody else's consumer, or a forgotten one of this process: a new connection ends the latter, and
            // the former does not go by our end.
            Doing::Subscribing if look.consumers > 0 && self.last_step.is_some() => Step::RebuildConnection,
            _ => match self.last_step {
                None => Step::RebuildChannel,
                Some((Step::RebuildChannel, _)) => Step::RebuildConnection,
                Some(_) => Step::Exit,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pulse::Pulse;

    const PATIENCE: Duration = Duration::from_secs(15);

    /// A partition that is looked at every three seconds.
    struct Scene {
        start: Instant,
        memory: Memory,
        look: Look,
        /// Whether a pipeline that is broken off begins anew, at the same, a second later.
        ends_when_told: bool,
    }

    impl Scene {
        fn new(doing: Doing, ready: u32) -> Self {
            let start = Instant::now();
            let mut pulse = Pulse::new().state();
            (pulse.doing, pulse.since) = (doing, start);
            let look = Look { now: start, ready, consumers: 1, takes: true, pulse };
            Self { start, memory: Memory::default(), look, ends_when_told: true }
        }

        /// Looks until so many seconds after the start; returns what was done, and when.
        fn until(&mut self, seconds: u64) -> Vec<(u64, Verdict)> {
            let mut done = Vec::new();
            while self.look.now < self.start + Duration::from_secs(seconds) {
                self.look.now += Duration::from_secs(3);
                let verdict = self.memory.judge(&self.look, PATIENCE);
                if self.ends_when_told && matches!(verdict, Verdict::Stuck(_)) {
                    self.look.pulse.since = self.look.now + Duration::from_secs(1);
                }
                if matches!(verdict, Verdict::Stuck(_) | Verdict::Renew) {
                    done.push((self.look.now.duration_since(self.start).as_secs(), verdict));
                }
            }
            done
        }
    }

    #[test]
    fn a_deaf_consumer_gets_a_channel_then_a_connection_then_the_process_ends() {
        let mut scene = Scene::new(Doing::Listening, 7);
        let expected = [(18, Step::RebuildChannel), (36, Step::RebuildConnection), (54, Step::Exit)];
        assert_eq!(scene.until(60), expected.map(|(at, step)| (at, Verdict::Stuck(step))));
    }

    #[test]
    fn a_consumer_that_is_late_to_subscribe_anew_is_not_charged_for_that() {
        let mut scene = Scene::new(Doing::Listening, 7);
        assert_eq!(scene.until(18), [(18, Verdict::Stuck(Step::RebuildChannel))]);
        scene.look.pulse.since = scene.look.now + Duration::from_secs(12);
        assert_eq!(scene.until(42), []);
        assert_eq!(scene.until(45), [(45, Verdict::Stuck(Step::RebuildConnection))]);
        // One that does so again and again is.
        for second in (48..75).step_by(3) {
            scene.look.pulse.since = scene.look.now;
            assert_eq!(scene.until(second), []);
        }
        assert_eq!(scene.until(75), [(75, Verdict::Stuck(Step::Exit))]);
    }

    #[test]
    fn a_queue_of_which_the_broker_says_nothing_is_a_fault_until_it_does() {
        let mut scene = Scene::new(Doing::Listening, 0);
        let at = |seconds| scene.start + Duration::from_secs(seconds);
        assert!(!scene.memory.is_unseen_for(at(0), PATIENCE));
        assert!(!scene.memory.is_unseen_for(at(15), PATIENCE));
        assert!(scene.memory.is_unseen_for(at(16), PATIENCE));
        assert_eq!(scene.memory.judge(&scene.look, PATIENCE), Verdict::Well);
        assert!(!scene.memory.is_unseen_for(at(17), PATIENCE));
    }

    #[test]
    fn whoever_finishes_is_well_and_starts_from_the_first_step_again() {
        let mut scene = Scene::new(Doing::Listening, 7);
        assert_eq!(scene.until(20).len(), 1);
        scene.look.pulse.finished = Some(scene.look.now);
        assert_eq!(scene.memory.judge(&scene.look, PATIENCE), Verdict::Well);
        assert_eq!(scene.until(39), [(36, Verdict::Stuck(Step::RebuildChannel))]);
    }

    #[test]
    fn known_causes_are_waited_out() {
        for doing in [Doing::Waiting("postgres"), Doing::Paused] {
            assert_eq!(Scene::new(doing, 1_000_000).until(3_600), []);
        }
        let mut broken = Scene::new(Doing::Broken("no table".into()), 3);
        assert_eq!(broken.memory.judge(&broken.look, PATIENCE), Verdict::StillStuck);
    }

    #[test]
    fn a_broker_that_takes_nothing_is_a_known_cause_and_one_that_answers_is_not() {
        let mut scene = Scene::new(Doing::Waiting("rabbitmq"), 7);
        scene.look.takes = false;
        assert_eq!(scene.until(3_600), []);
        let mut scene = Scene::new(Doing::Waiting("rabbitmq"), 7);
        assert_eq!(scene.until(20).len(), 1);
    }

    #[test]
    fn a_backlog_that_is_worked_off_is_no_fault() {
        let mut scene = Scene::new(Doing::Listening, 1_000_000);
        for second in (10..600).step_by(10) {
            assert_eq!(scene.until(second), []);
            scene.look.pulse.finished = Some(scene.look.now);
        }
    }

    #[test]
    fn a_lone_message_after_an_idle_day_is_not_stuck_at_once() {
        let mut scene = Scene::new(Doing::Subscribing, 0);
        scene.until(86_400);
        scene.look.ready = 1;
        assert_eq!(scene.until(86_412), []);
    }

    #[test]
    fn a_queue_without_a_leader_is_told_and_nothing_is_rebuilt() {
        let mut scene = Scene::new(Doing::Listening, 0);
        scene.look.consumers = 0;
        assert!(scene.until(90).iter().all(|(_, verdict)| *verdict == Verdict::Renew));
        // It can't subscribe again.
        for doing in [Doing::Subscribing, Doing::Waiting("rabbitmq"), Doing::Subscribing] {
            scene.look.pulse.doing = doing;
            assert_eq!(scene.memory.judge(&scene.look, PATIENCE), Verdict::Unseen);
        }
        assert_eq!(scene.memory.judge(&scene.look, PATIENCE), Verdict::Unseen);
        scene.look.consumers = 1;
        assert_ne!(scene.memory.judge(&scene.look, PATIENCE), Verdict::Unseen);
    }

    #[test]
    fn an_idle_consumer_is_renewed_from_time_to_time() {
        let mut scene = Scene::new(Doing::Listening, 0);
        assert_eq!(scene.until(130), [(60, Verdict::Renew), (120, Verdict::Renew)]);
    }

    #[test]
    fn a_batch_that_waits_for_a_lock_is_given_time_and_never_ends_the_process() {
        let mut scene = Scene::new(Doing::Applying, 9);
        let steps = scene.until(600);
        assert_eq!(steps.first(), Some(&(75, Verdict::Stuck(Step::RebuildChannel))));
        assert!(steps.iter().all(|(_, verdict)| *verdict == Verdict::Stuck(Step::RebuildChannel)));
    }

    #[test]
    fn a_batch_that_can_not_be_broken_off_ends_the_process() {
        let mut scene = Scene::new(Doing::Applying, 9);
        scene.ends_when_told = false;
        let expected = [(75, Step::RebuildChannel), (150, Step::Exit)];
        assert_eq!(scene.until(160), expected.map(|(at, step)| (at, Verdict::Stuck(step))));
    }

    #[test]
    fn somebody_elses_consumer_does_not_end_the_process() {
        let mut scene = Scene::new(Doing::Subscribing, 9);
        assert!(!scene.until(600).iter().any(|(_, verdict)| *verdict == Verdict::Stuck(Step::Exit)));
    }
}
