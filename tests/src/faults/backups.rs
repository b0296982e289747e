//! Backups, which break nothing: the stores are read and written beside the commands, and what is restored must agree.

use anyhow::{Result, ensure};

use super::{Fault, act};
use crate::backups::{Backups, must_agree, own};
use crate::harness::Harness;

pub static FAULTS: &[Fault] = &[Fault::new(
    "backups: made and restored beside the commands",
    act!(there_and_back),
    act!(super::nothing),
)
.applies()
.takes()
.hold(0.0, 0.0)
.soak_only()];

async fn there_and_back(h: &mut Harness<'_>) -> Result<()> {
    let backups = Backups::new(h.cluster);
    for round in 0..3 {
        let (dump, trail) = (backups.create("postgres").await?, backups.create("mongodb").await?);
        let into = format!("{}_r{round}", own(h.site));
        backups.ask(&["restore", &dump, &trail, "--into", &into]).await?;
        let settled = must_agree(&backups, h.site, &trail, &into).await?;
        ensure!(settled > 1_000, "only {settled} receipts are settled");
        h.site.mongo.client().database(&into).drop().await?;
        h.world.drop_database(&into).await?;
    }
    Ok(())
}
