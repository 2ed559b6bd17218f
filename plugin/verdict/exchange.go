package verdict

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Underlay is what an exchange of UDP packets between the tunnel addresses of two hosts showed.
type Underlay struct {
	From, To string
	Src, Dst netip.Addr
	Port     uint16
	// Error is why nothing was found out; the rest may be empty then.
	Error string
	// Tunnel is the sending host's port whose packets they were like; empty where none was named.
	Tunnel string
	// Sizes ascend, the first being small.
	Sizes []UnderlaySize
	// Asked says that the other host told what came there; otherwise only what was answered is known, and Unasked is
	// why, if it said so.
	Asked   bool
	Unasked string
	// FromOthers is how long ago the other host had packets of other exchanges, negative for never. If
	// that is not long, nothing there keeps them out.
	FromOthers time.Duration
	// Silent is for how long those packets have not been answered that the two hosts exchange all the time, and which had been until
	// then; 0 is that there are none, or they are. What keeps others out there did not keep these, whichever of the two asks.
	Silent time.Duration
	// Meanwhile says that nothing of this exchange came, and packets of another from the same host did after its last
	// was sent.
	Meanwhile bool
	// Passes is the largest size that passed there and back, where that was looked for.
	Passes int
	// Refusals came back instead of answers.
	Refusals []UnderlayRefusal
	// MayFragment says that the tunnel does not insist on whole packets, as the exchange does.
	MayFragment  bool
	ToS, ToSSeen uint8
	// Before is an exchange of a moment ago that lost much of what this one does not: see Again.
	Before *Underlay
}

// trip is the longest round trip of its small packets; 0 where less than half of them were answered.
func (u *Underlay) trip() (rtt time.Duration) {
	if u == nil || u.Error != "" || len(u.Sizes) == 0 {
		return 0
	}
	sent, answered := 0, 0
	for _, p := range u.Sizes[0].Ports {
		sent, answered, rtt = sent+p.Sent, answered+p.Answered, max(rtt, p.RTT)
	}
	if 2*answered < sent {
		return 0
	}
	return rtt
}

// UnderlaySize is what became of packets of one size, by source port.
type UnderlaySize struct {
	Bytes int
	Ports []UnderlayPort
}

// UnderlayPort is what became of packets of one size from one source port.
type UnderlayPort struct {
	SourcePort              uint16
	Sent, Arrived, Answered int // Arrived is Answered where the other host was not asked
	RTT                     time.Duration
}

// UnderlayRefusal is an ICMP error, or a refusal of the sending host itself, where From is empty.
type UnderlayRefusal struct {
	From       string
	Type, Code uint8
	MTU        int
	Text       string
	Size       int
	Count      int
}

// traffic sums up what became of packets in one direction.
type traffic struct {
	sent, came  int
	ports       int
	dead, whole int  // source ports of which nothing came, and everything
	vain        int  // packets that the former sent
	scarce      bool // there are ports of which nothing came that were tried too seldom to tell
}

// forward counts what came to the other host of size i.
func (u *Underlay) forward(i int) traffic {
	return u.traffic(false, i)
}

// reply counts what came back of what had come to the other host.
func (u *Underlay) reply(i int) traffic {
	return u.traffic(true, i)
}

// passed is what was sent in one direction from a port, and what of it came.
func (p *UnderlayPort) passed(reply bool) (sent, came int) {
	if reply {
		return p.Arrived, p.Answered
	}
	return p.Sent, p.Arrived
}

func (u *Underlay) traffic(reply bool, size int) traffic {
	t := traffic{}
	for i := range u.Sizes[size].Ports {
		sent, came := u.Sizes[size].Ports[i].passed(reply)
		if sent == 0 {
			continue
		}
		t.ports++
		t.sent, t.came = t.sent+sent, t.came+came
		switch {
		case came == sent:
			t.whole++
		case came == 0:
			t.dead++
			t.vain += sent
			t.scarce = t.scarce || sent < proof
		}
	}
	return t
}

// nothing says that all was lost, for a reason.
func (t traffic) nothing() bool { return t.came == 0 && t.sent >= proof }

// some says that some source ports lose everything, and the others nothing, or so little that the former
// are no chance: at a loss of a tenth, one port in 10,000 loses all of what proof wants.
func (t traffic) some() bool {
	const little = 0.1
	alive := t.sent - t.vain
	return t.dead > 0 && t.dead < t.ports && !t.scarce && float64(alive-t.came) <= little*float64(alive)
}

func (t traffic) loss() float64 {
	if t.sent == 0 {
		return 0
	}
	return 1 - float64(t.came)/float64(t.sent)
}

// Route words which way an exchange went.
func (u *Underlay) Route() string {
	src := "UDP from " + u.From
	if u.Src.IsValid() {
		src = "UDP from " + u.Src.String()
	}
	return src + " to " + u.Dst.String()
}

// refusal is what somebody on the way says of small packets, but not that nobody listens.
func (u *Underlay) refusal() (UnderlayRefusal, bool) {
	for _, r := range u.Refusals {
		if !r.nobody() && r.MTU == 0 {
			return r, true
		}
	}
	return UnderlayRefusal{}, false
}

// nobody says that no program listens (ICMP port unreachable; ICMPv6 likewise).
func (r UnderlayRefusal) nobody() bool {
	six := strings.Contains(r.From, ":")
	return r.From != "" && (!six && r.Type == 3 && r.Code == 3 || six && r.Type == 1 && r.Code == 4)
}

func (r UnderlayRefusal) String() string {
	who := r.From
	if who == "" {
		who = "the sending host"
	}
	text := fmt.Sprintf("%s says: %s", who, r.Text)
	if r.MTU > 0 {
		text += fmt.Sprintf(", at most %d bytes", r.MTU)
	}
	return text
}

// underlayFault is what an exchange says of a loss between two tunnel ends.
type underlayFault uint8

const (
	unclear      underlayFault = iota
	noWay                      // nothing arrives
	maybeNoWay                 // nothing arrives, which a firewall that minds our port would do too
	oneOfSeveral               // some source ports lose everything, the others nothing
	rife                       // much is lost, and some of it passes
	fleeting                   // much was lost a moment ago, and little is now
	passable                   // what we send arrives
)

// NoWay says that nothing at all arrives in the exchange's direction, for a reason.
func (u *Underlay) NoWay() bool {
	what, _ := u.small()
	return what == noWay
}

// small sums up what became of small packets in the exchange's direction.
func (u *Underlay) small() (f underlayFault, words string) {
	if u.Error != "" || len(u.Sizes) == 0 {
		return unclear, u.Error
	}
	t := u.forward(0)
	route := u.Route()
	refusal, refused := u.refusal()
	switch {
	case u.Before != nil:
		was := u.Before.forward(0)
		return fleeting, fmt.Sprintf("%d of %d packets were lost by %s, and of others a moment later %d of %d", was.sent-was.came, was.sent, route, t.sent-t.came, t.sent)
	case t.sent == 0 && refused:
		return noWay, fmt.Sprintf("%s cannot be sent: %s", route, refusal)
	case t.sent == 0:
		return unclear, "no packet was sent"
	case t.nothing() && slices.ContainsFunc(u.Refusals, UnderlayRefusal.nobody):
		return unclear, fmt.Sprintf("nobody listens at UDP port %d of %s", u.Port, u.Dst)
	case t.nothing() && refused:
		return noWay, fmt.Sprintf("none of %d packets arrives by %s either; %s", t.sent, route, refusal)
	case t.nothing() && !u.Asked:
		return unclear, fmt.Sprintf("none of %d packets by %s was answered, and %s could not be asked whether any came%s", t.sent, route, u.To, because(u.Unasked))
	case t.nothing() && u.Meanwhile:
		return rife, fmt.Sprintf("none of %d packets arrives by %s, though others from %s did so meanwhile", t.sent, route, u.From)
	case t.came < t.sent && !u.Asked:
		// They may have come, or found no room in a socket of ours.
		return unclear, fmt.Sprintf("%d of %d packets by %s were not answered, and %s could not be asked how many came%s", t.sent-t.came, t.sent, route, u.To, because(u.Unasked))
	case t.nothing() && u.FromOthers >= 0 && u.FromOthers <= recently:
		return noWay, fmt.Sprintf("none of %d packets arrives by %s either; the last ones to come there did so %s ago", t.sent, route, ago(u.FromOthers))
	case t.nothing() && u.Silent > 0:
		return noWay, fmt.Sprintf("none of %d packets arrives by %s either; those that the two hosts exchange all the time were answered until %s ago", t.sent, route, ago(u.Silent))
	case t.nothing():
		return maybeNoWay, fmt.Sprintf("none of %d packets arrives by %s, port %d, either; but nor have any others of late, so that a firewall may drop them",
			t.sent, route, u.Port)
	case t.some():
		return oneOfSeveral, fmt.Sprintf("of %d source ports, %d lose everything by %s, and the others %s", t.ports, t.dead, route, t.others())
	case t.loss() >= rifeLoss:
		return rife, fmt.Sprintf("%d of %d packets are lost by %s too", t.sent-t.came, t.sent, route)
	case t.came < t.sent:
		return passable, fmt.Sprintf("%d of %d packets of %d source ports pass by %s", t.came, t.sent, t.ports, route)
	}
	return passable, fmt.Sprintf("%d packets of %d source ports pass by %s", t.came, t.ports, route)
}

// narrow says that large packets are lost where small ones pass, there or (reply) back; and in
// words, how.
func (u *Underlay) narrow() (reply bool, words string, ok bool) {
	last := len(u.Sizes) - 1
	if u.Error != "" || last < 1 || u.MayFragment {
		return false, "", false
	}
	for _, reply := range []bool{false, true} {
		if words, ok := u.narrowBy(reply); ok {
			return reply, words, true
		}
	}
	return false, "", false
}

// narrowBy is narrow of one direction, of an exchange of two sizes at least, whether they may be fragmented or not.
func (u *Underlay) narrowBy(reply bool) (words string, ok bool) {
	last := len(u.Sizes) - 1
	small, large := u.traffic(reply, 0), u.traffic(reply, last)
	switch {
	case small.sent < proof || large.sent < proof: // we cannot tell
	case large.nothing() && math.Pow(small.loss(), float64(large.sent)) <= byChance && small.loss() < fewLost:
		return u.tooLarge(reply, ""), true
	case large.some() && small.came == small.sent:
		return u.tooLarge(reply, fmt.Sprintf(", by %d of %d source ports", large.dead, large.ports)), true
	}
	return "", false
}

func (u *Underlay) tooLarge(reply bool, by string) string {
	a, b := firstOf(text(u.Src), u.From), text(u.Dst)
	if reply {
		a, b = b, a
	}
	large := u.Sizes[len(u.Sizes)-1].Bytes
	words := fmt.Sprintf("packets of %d bytes from %s to %s are lost%s, while %d bytes pass", large, a, b, by, u.Sizes[0].Bytes)
	if u.Passes > 0 {
		words = fmt.Sprintf("packets of %d bytes from %s to %s are lost%s, while up to %d bytes pass", large, a, b, by, u.Passes)
	}
	for _, r := range u.Refusals {
		if r.MTU > 0 {
			return words + "; " + r.String()
		}
	}
	return words
}

// Rife says that an exchange lost much of what it sent, by all source ports: what a switch does for a moment that
// stands still, whose queue overflows. Before that accuses the network it must be seen Again.
func (u *Underlay) Rife() bool {
	what, _ := u.small()
	return what == rife
}

// Untried says that no large packet of an exchange was sent, since no small one was answered in time, though some came there: what
// answers stands still, or nothing comes back.
func (u *Underlay) Untried() bool {
	last := len(u.Sizes) - 1
	return u.Error == "" && u.Asked && last > 0 && u.forward(last).sent == 0 && u.forward(0).came > 0
}

// Drowned says that nothing of an exchange came, while packets of others did come to the same host, within that time before
// it was asked. Where a way passes little, one exchange takes the room of another that goes on at once: before that
// accuses the network it must be seen Again, alone. Streams that are silent, or a router that says so, show it already.
func (u *Underlay) Drowned(within time.Duration) bool {
	_, refused := u.refusal()
	return u.NoWay() && !refused && u.Silent == 0 && u.FromOthers >= 0 && u.FromOthers < within
}

// Again returns what two exchanges show together, one a moment after the other, of which the first is Rife or Drowned. Only what
// both show is claimed: where the second lost less than half as much, that is that it passed by.
func Again(first, second *Underlay) *Underlay {
	what, _ := second.small()
	if what != passable {
		return second // unclear, or it loses much too, or by now all
	}
	u := *second
	if u.forward(0).loss() < first.forward(0).loss()/2 {
		u.Before = first
		return &u
	}
	// At the bound one exchange is above it, and one below.
	u.Sizes = slices.Clone(second.Sizes)
	for i := range u.Sizes {
		u.Sizes[i].Ports = slices.Concat(first.Sizes[i].Ports, second.Sizes[i].Ports)
	}
	return &u
}
