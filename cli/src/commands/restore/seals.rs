//! The end of a restore: the audit trail's seals, over the pair of stores that would go on with what was restored.

use std::time::Instant;

use chrono::{DateTime, Utc};
use taskflow_backup::restore::{Restored, Seals, Verified};
use taskflow_scheduler::audit::restored::{Checked, check};
use taskflow_scheduler::{Backups, Stores};
use taskflow_stores::mongo::{self, Database};
use taskflow_stores::postgres::{self, PgPool};
use taskflow_stores::{clock, redis};

use crate::exit::{Exit, FAILED};
use crate::settings::Settings;

/// Findings that are told of in words.
const SHOWN: usize = 20;

/// What was restored; where one of the two is missing, the live one stands beside it.
#[derive(Default)]
pub(super) struct Pair {
    pub postgres: Option<PgPool>,
    pub mongo: Option<Database>,
    /// Up to when the restored trail has everything.
    pub through: Option<DateTime<Utc>>,
}

impl Pair {
    /// Verifies the seals. What can't be done is said, and no reason to fail: the restore itself has passed its checks.
    pub(super) async fn verify(self, settings: &Settings) -> Seals {
        let started = Instant::now();
        match self.try_verify(settings).await {
            Ok(Checked::Not(why)) => Seals::NotVerified(why),
            Ok(Checked::Through(through, report)) => Seals::Verified(Verified {
                through,
                proved: report.counts.proved,
                took_s: started.elapsed().as_secs_f64(),
                found: report.found.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
                findings: report.findings.iter().take(SHOWN).map(ToString::to_string).collect(),
            }),
            Err(error) => Seals::NotVerified(error.message().to_owned()),
        }
    }

    async fn try_verify(self, settings: &Settings) -> Result<Checked, Exit> {
        let stores = Stores {
            postgres: match self.postgres {
                Some(pool) => pool,
                None => postgres::connect(&settings.postgres, super::NAME)?,
            },
            mongo: match self.mongo {
                Some(database) => database,
                None => mongo::connect(&settings.mongodb, super::NAME).await?,
            },
            redis: redis::connect(&settings.redis)?,
            backups: Backups::default(),
        };
        Ok(check(&stores, &settings.audit, self.through, None, clock::now(), || true).await?)
    }
}

/// Why the seals of a part alone are not verified.
pub(super) fn of_a_part() -> Seals {
    Seals::NotVerified("only a part was restored".to_owned())
}

/// In words.
pub(super) fn told(seals: &Seals) -> Vec<String> {
    match seals {
        Seals::NotVerified(why) => vec![format!("the seals of the audit trail are not verified: {why}")],
        Seals::Verified(verified) if verified.found.is_empty() => vec![format!(
            "checked: the audit trail is as it was sealed, up to seal {}: {} events ({:.1} s)",
            verified.through, verified.proved, verified.took_s
        )],
        Seals::Verified(verified) => {
            let kinds: Vec<String> =
                verified.found.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            let head = format!(
                "WRONG: the audit trail is not what was sealed: {}; docs/audit.md says what to do",
                kinds.join(", ")
            );
            [vec![head], verified.findings.clone()].concat()
        }
    }
}

/// How the command ends: what was restored is there, and with a bent trail that is not all well.
pub(super) fn code<'r>(restored: impl IntoIterator<Item = &'r Restored>) -> std::process::ExitCode {
    let is_bent =
        |one: &Restored| matches!(&one.seals, Some(Seals::Verified(verified)) if !verified.found.is_empty());
    if restored.into_iter().any(is_bent) {
        std::process::ExitCode::from(FAILED)
    } else {
        std::process::ExitCode::SUCCESS
    }
}
