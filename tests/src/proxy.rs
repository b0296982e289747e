//! A wire to a server that can be slow, silent, cut, or laid to another server.
//!
//! TCP hides what a network loses: to the program a lost packet is a pause until it is sent again. So that is what
//! "loss" is here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::dice::Dice;

/// Pieces of one direction that are on their way; more wait in the sender.
const ON_THE_WAY: usize = 256;
const PIECE: usize = 16_384;

/// How one direction behaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flow {
    /// Every byte takes so long.
    pub delay: Duration,
    /// One piece of so many is lost, and comes [`Flow::again`] later, with everything behind it. 0: none is.
    pub one_lost_of: u64,
    pub again: Duration,
    /// Nothing passes, and nobody is told.
    pub silent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

#[derive(Debug, Clone)]
struct Control {
    target: String,
    there: Flow,
    back: Flow,
    /// Nobody listens: new connections end at once.
    refusing: bool,
    /// Connections up to this number have ended.
    cut: u64,
    /// Connections up to this number are silent for good.
    forgotten: u64,
}

impl Control {
    fn flow(&self, way: Way, number: u64) -> Flow {
        let flow = if way == Way::There { self.there } else { self.back };
        Flow { silent: flow.silent || number <= self.forgotten, ..flow }
    }
}

/// A wire. It ends with its connections when it is dropped.
pub struct Wire {
    address: SocketAddr,
    control: watch::Sender<Control>,
    made: Arc<AtomicU64>,
    open: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Wire {
    /// Lays a wire to `host:port`.
    pub async fn to(target: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let control = watch::Sender::new(Control {
            target: target.to_owned(),
            there: Flow::default(),
            back: Flow::default(),
            refusing: false,
            cut: 0,
            forgotten: 0,
        });
        let made = Arc::new(AtomicU64::new(0));
        let open = Arc::new(AtomicU64::new(0));
        let (numbers, controlled, counted) = (Arc::clone(&made), control.subscribe(), Arc::clone(&open));
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = numbers.fetch_add(1, Ordering::SeqCst) + 1;
                let carried = carry(near, number, controlled.clone());
                let open = Open::one(&counted);
                tokio::spawn(async move {
                    carried.await;
                    drop(open);
                });
            }
        });
        Ok(Self { address, control, made, open, task })
    }

    /// Lays a wire to the server of an address such as `amqp://user:password@host:port/name`; returns the address
    /// that leads through it.
    pub async fn to_url(url: &str) -> Result<(Self, String)> {
        let (head, rest) = url.split_once("://").context("no address of a server")?;
        let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(user, rest)| (user, rest));
        let (target, path) = rest.split_once('/').unwrap_or((rest, ""));
        let wire = Self::to(target).await?;
        let at = if user.is_empty() { "" } else { "@" };
        let url = format!("{head}://{user}{at}{}/{path}", wire.address);
        Ok((wire, url))
    }

    /// How the bytes to the server and back behave from now on.
    pub fn behave(&self, there: Flow, back: Flow) {
        self.control.send_modify(|control| (control.there, control.back) = (there, back));
    }

    /// Connections that were made by now.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    /// Connections that are there now.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::SeqCst)
    }

    /// Ends all connections. New ones may be made.
    pub fn cut(&self) {
        let made = self.made.load(Ordering::SeqCst);
        self.control.send_modify(|control| control.cut = made);
    }

    /// The connections that are there hang for good, as after a router that forgot them. New ones are well.
    pub fn forget(&self) {
        let made = self.made.load(Ordering::SeqCst);
        self.control.send_modify(|control| control.forgotten = made);
    }

    /// Whether new connections end at once.
    pub fn refuse(&self, refusing: bool) {
        self.control.send_modify(|control| control.refusing = refusing);
    }

    /// New connections lead to this `host:port`.
    pub fn lead_to(&self, target: &str) {
        self.control.send_modify(|control| target.clone_into(&mut control.target));
    }
}

/// A connection that counts as open.
struct Open(Arc<AtomicU64>);

impl Open {
    fn one(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
        self.control.send_modify(|control| control.cut = u64::MAX);
    }
}

async fn carry(near: TcpStream, number: u64, control: watch::Receiver<Control>) {
    let mut cut = control.clone();
    let carried = async {
        if control.borrow().refusing {
            return Ok(());
        }
        // Silence begins with the greeting: whoever connects learns nothing of the server.
        speaking(&mut control.clone(), Way::There, number).await;
        let target = control.borrow().target.clone();
        let far = TcpStream::connect(target).await?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let there = pump(near_read, far_write, Way::There, number, control.clone());
        let back = pump(far_read, near_write, Way::Back, number, control.clone());
        tokio::try_join!(there, back).map(drop)
    };
    tokio::select! {
        _ = carried => {}
        _ = cut.wait_for(|control| control.cut >= number) => {}
    }
}

/// Waits while this direction is silent.
async fn speaking(control: &mut watch::Receiver<Control>, way: Way, number: u64) {
    // The sender goes with the wire, and the connection is cut then.
    let _ = control.wait_for(|control| !control.flow(way, number).silent).await;
}

/// Carries one direction. What is read waits in line until it is due, so that a delay costs no throughput.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    way: Way,
    number: u64,
    mut control: watch::Receiver<Control>,
) -> std::io::Result<()> {
    let (sender, mut line) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    let mut dice = Dice::new(number).part(u64::from(way == Way::Back));
    let reading = control.clone();
    let read = async move {
        let mut piece = vec![0; PIECE];
        loop {
            let length = from.read(&mut piece).await?;
            if length == 0 {
                return Ok(());
            }
            let flow = reading.borrow().flow(way, number);
            let lost = flow.one_lost_of > 0 && dice.below(flow.one_lost_of) == 0;
            let due = Instant::now() + flow.delay + if lost { flow.again } else { Duration::ZERO };
            if sender.send((due, piece[..length].to_vec())).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = line.recv().await {
            sleep_until(due).await;
            speaking(&mut control, way, number).await;
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
}
