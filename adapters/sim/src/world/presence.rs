//! Coming and going in a calm world: whether presence is true at once, and not only once it is renewed.

use std::time::Duration;

use super::{Who, World};
use crate::{Violation, checks};

impl World<'_> {
    /// Cuts off a client and lets it come back, as it was or with its page loaded anew.
    ///
    /// Renewals and expiry mend within half a minute whatever a server forgets to say, so what it says is
    /// looked at within moments.
    pub(super) fn come_and_go(&mut self) -> Result<(), Violation> {
        let index = self.random.index(self.clients.len());
        let Some(link) = self.clients[index].session.as_ref().map(|session| session.link) else {
            return Ok(());
        };
        self.settled = false;
        self.clients[index].away_until = self.now + AWAY;
        self.session_ends(Who::Client(index), link, "cut")?;
        self.run_until(self.now + MOMENTS)?;
        self.check_presence(index, |other| other != index, |other| other != index)?;
        let loads_anew = self.random.permille(500);
        if loads_anew {
            self.load_anew(index, self.clients[index].room);
        }
        self.run_until(self.now + AWAY)?;
        // Who remembers the clocks of others finds nothing new in them before they are renewed.
        self.check_presence(index, |_| true, |other| loads_anew || other != index)?;
        self.settled = true;
        Ok(())
    }

    /// In the room of `index`, those who look see exactly those who are there.
    fn check_presence(
        &self,
        index: usize,
        is_there: impl Fn(usize) -> bool,
        looks: impl Fn(usize) -> bool,
    ) -> Result<(), Violation> {
        let room = self.clients[index].room;
        let mut members = self.members(room);
        let clients = self.clients.iter().enumerate().filter(|(_, client)| client.room == room);
        // Applications come behind the clients, and are there all the time.
        for (member, (other, _)) in members.iter_mut().zip(clients) {
            member.present = member.present.take().filter(|_| is_there(other));
            member.shows = member.shows.take().filter(|_| looks(other));
        }
        checks::presence_is_exact(&self.rooms[room], &members)
    }
}

/// How long it may take until everybody knows: some flushes of presence, and little beside.
const MOMENTS: Duration = Duration::from_secs(1);

/// How long somebody is away, and then has to be there again.
const AWAY: Duration = Duration::from_secs(3);
