//! How many requests a user and an address may send.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use reqwest::Response;
use taskflow_tests::commands::USER;
use taskflow_tests::{Client, Result, Site};

use super::{new_key, told};
use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("access: requests of a user are limited, with the draft's headers", by_user),
        with_site("access: requests from an address are limited, as the trusted proxy names it", by_address),
    ]
}

fn header(answer: &Response, name: &str) -> String {
    answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// The parameter of a policy in a header such as `"user";r=5;t=60, "address";r=9;t=60`.
fn parameter(header: &str, policy: &str, name: &str) -> Result<u64> {
    let item = header.split(", ").find(|item| item.starts_with(&format!("\"{policy}\";")));
    let parameters = item.with_context(|| format!("no {policy} in {header:?}"))?.split(';').skip(1);
    let value = parameters.filter_map(|parameter| parameter.split_once('=')).find(|(key, _)| *key == name);
    Ok(value.with_context(|| format!("no {name} in {header:?}"))?.1.parse()?)
}

async fn by_user(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let setting = [("TASKFLOW_HTTP__LIMITS__USER_REQUESTS_PER_MINUTE", "20")];
    let (_api, client) = cluster.api_with(&setting).await?;
    let (_other_api, elsewhere) = cluster.api_with(&setting).await?;
    let admin = client.admin().await?;
    let (_, key) = new_key(&admin, &["read"], None).await?;
    let user = client.user().await?;
    let path = format!("/v1/users/{USER}/permissions");
    // Side by side, on two processes: the counter is one.
    let there = elsewhere.with(&user.token().unwrap_or_default());
    let asked = (0..30).map(|number| {
        let (user, there, path) = (&user, &there, &path);
        async move { if number % 2 == 0 { user.get(path).await } else { there.get(path).await } }
    });
    let answers = futures_util::future::try_join_all(asked).await?;
    let (good, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status() == 200);
    ensure!(good.len() == 20 && refused.len() == 10, "{} passed, {} did not", good.len(), refused.len());
    let mut left: Vec<u64> = good
        .iter()
        .map(|answer| parameter(&header(answer, "ratelimit"), "user", "r"))
        .collect::<Result<_>>()?;
    left.sort_unstable();
    ensure!(left == (0..20).collect::<Vec<_>>(), "{left:?}");
    for answer in refused {
        let after: u64 = header(&answer, "retry-after").parse()?;
        let limit = header(&answer, "ratelimit");
        ensure!((1..=60).contains(&after) && after >= parameter(&limit, "user", "t")?, "{after} {limit}");
        ensure!(parameter(&limit, "user", "r")? == 0 && parameter(&limit, "address", "r")? > 0, "{limit}");
        let policy = header(&answer, "ratelimit-policy");
        ensure!(policy == "\"user\";q=20;w=60, \"address\";q=1000000;w=3600", "{policy}");
        let (status, answer) = told(answer).await?;
        ensure!(
            status == 429 && answer["violated-policies"] == serde_json::json!(["user"]),
            "{status} {answer}"
        );
        ensure!(answer["type"].as_str().is_some_and(|kind| kind.ends_with("#quota-exceeded")), "{answer}");
    }
    // Others have quotas of their own, and the spec's keys hold the counts.
    ensure!(key.get(&path).await?.status() == 200 && admin.get(&path).await?.status() == 200, "not fair");
    let count = site.cached(&format!("rate-limit:user:{USER}:minute")).await?;
    ensure!(count.as_deref() == Some("30"), "{count:?}");
    let count = site.cached("rate-limit:ip:127.0.0.1:hour").await?.context("no count of the address")?;
    ensure!(count.parse::<u64>()? >= 30, "{count}");
    // Health is never limited, nor counted.
    for _ in 0..30 {
        let answer = user.get("/healthz").await?;
        ensure!(answer.status() == 200 && !answer.headers().contains_key("ratelimit"), "{answer:?}");
    }
    Ok(())
}

async fn by_address(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let limit = ("TASKFLOW_HTTP__LIMITS__ADDRESS_REQUESTS_PER_HOUR", "6");
    let proxy = ("TASKFLOW_HTTP__LIMITS__TRUSTED_PROXIES", "[\"127.0.0.0/8\"]");
    let (_api, client) = cluster.api_with(&[limit, proxy]).await?;
    let from = async |client: &Client, address: &str| -> Result<u16> {
        let request = client.request(reqwest::Method::GET, "/v1/commands/x");
        Ok(request.header("x-forwarded-for", address).send().await?.status().as_u16())
    };
    // Whoever has no token is counted too; what stands in front of the last address may be invented.
    let nobody = client.with("tfs_nonsense");
    for number in 0..6 {
        let status = from(&nobody, &format!("203.0.113.{number}, 198.51.100.1")).await?;
        ensure!(status == 401, "{status}");
    }
    ensure!(from(&nobody, "198.51.100.1").await? == 429, "not limited");
    ensure!(from(&nobody, "198.51.100.2").await? == 401, "a neighbour is limited");
    for number in 0..6 {
        let status = from(&nobody, &format!("2001:db8::{number}")).await?;
        ensure!(status == 401, "{status}");
    }
    ensure!(from(&nobody, "2001:db8::ffff").await? == 429, "a network of IPv6 is not one caller");
    ensure!(site.cached("rate-limit:ip:2001:db8::/64:hour").await?.is_some(), "no count");
    // Without a trusted proxy the header means nothing.
    let (_api, client) = cluster.api_with(&[limit]).await?;
    let nobody = client.with("tfs_nonsense");
    for number in 0..6 {
        ensure!(from(&nobody, &format!("198.51.100.{number}")).await? == 401, "limited too early");
    }
    ensure!(from(&nobody, "198.51.100.99").await? == 429, "the header was believed");
    Ok(())
}
