package verdict

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

const (
	// smallPacket is as large as a stained probe in a tunnel is, at the most (bytes of IP packet):
	// what becomes of it is what becomes of our probes.
	smallPacket = 128
	// smallStream4 and 6 are as small as packets of a stream may be, or as probes are, by IP version (bytes;
	// UnderlayTarget.size).
	smallStream4, smallStream6 = 128, 144
	// recently is how long ago a responder must have heard anybody for us to believe that
	// nothing on its own host keeps packets out. The fleet has each tried every few minutes
	// (fleet.Acquaint), so that one which is not heard for twice that time is under suspicion.
	recently = 10 * time.Minute
	// proof is how many packets of one kind must be lost, and none pass, to be lost for a reason: four
	// at random have 1 in 10,000 at a loss of 10 %.
	proof = 4
	// rifeLoss is from which share on the underlay's loss of single packets can be why all probes of a
	// pair were lost (at this share, three of them once in 125).
	rifeLoss = 0.2
	// byChance is how likely it may be that large packets were all lost at random, by what small ones
	// tell of that.
	byChance = 1e-6
	// fewLost is up to which share of the small packets may be lost for the large ones to be judged at all: a way that passes little
	// does not lose at random, but what finds no room, which is the large ones first.
	fewLost = 0.1
)

// NeedUnderlay asks for an exchange of UDP packets between the tunnel addresses of two hosts.
type NeedUnderlay struct {
	From, To string
	// Src is the zero Addr where the sending host is to choose.
	Src, Dst netip.Addr
	// Port where the other host answers.
	Port uint16
	// By is the tunnel port of the sending host whose packets these are to be like; zero where none is known.
	By inventory.Tunnel
	// Small and Large are bytes of IP packets: as large as our probes, and as the instances' traffic in
	// that tunnel; Large is 0 where that is not known.
	Small, Large int
}

// others says what those source ports lose that do not lose everything.
func (t traffic) others() string {
	if alive := t.sent - t.vain; t.came < alive {
		return fmt.Sprintf("%d of %d packets", alive-t.came, alive)
	}
	return "nothing"
}

// overhead is what a tunnel adds to the IP packet of an instance, the outer IP header apart: the inner
// Ethernet header, and GRE with a key (RFC 2784, RFC 2890), UDP and VXLAN (RFC 7348), or UDP and
// Geneve (RFC 8926), of OVN with one option of 8 bytes (ovn-architecture(7), Tunnel Encapsulations). 0 is
// not known.
func overhead(t inventory.Tunnel) int {
	switch {
	case t.Type == "gre" || t.Type == "ip6gre":
		return 14 + 8
	case t.Type == "geneve" && ovnTunnel.MatchString(t.Port):
		return 14 + 8 + 8 + 8
	case t.Type == "vxlan" || t.Type == "geneve":
		return 14 + 8 + 8
	}
	return 0
}

// ovnTunnel matches the names that ovn-controller gives to the ports of its tunnels: "ovn", where there are several of it
// on the host an index, the beginning of the other chassis's name, and a number in hexadecimal (encaps.c,
// tunnel_create_name). Nothing else of a tunnel's port tells a controller of it.
var ovnTunnel = regexp.MustCompile(`^ovn[^-]*-.+-[0-9a-f]+$`)

// largest is the outer packet that the largest of two instances' packets makes in a tunnel to dst; 0
// where that is not known. The smaller MTU of the two counts: no more is expected to pass.
func largest(a, b *plan.End, t inventory.Tunnel, dst netip.Addr) int {
	mtu := min(a.MTU, b.MTU)
	if mtu == 0 || overhead(t) == 0 || !dst.IsValid() {
		return 0
	}
	ip := 40
	if dst.Is4() {
		ip = 20
	}
	return mtu + overhead(t) + ip
}

// between returns the exchange between the tunnel addresses of two hosts, of packets as large as that tunnel
// makes them; why says why there can be none.
func between(from, to *plan.End, t inventory.Tunnel, dst netip.Addr) (n *NeedUnderlay, why string) {
	for _, end := range []*plan.End{from, to} {
		switch {
		case end.Echo == nil:
			return nil, fmt.Sprintf("the agent of %s knows no underlay probes", end.Host)
		case end.Echo.Port == 0:
			return nil, fmt.Sprintf("underlay probes are switched off on %s", end.Host)
		}
	}
	if !slices.Contains(to.Echo.At, dst) {
		why = fmt.Sprintf("the agent of %s does not answer underlay probes at %s", to.Host, dst)
		if len(to.Echo.Problems) > 0 {
			why += " (" + strings.Join(to.Echo.Problems, "; ") + ")"
		}
		return nil, why
	}
	n = &NeedUnderlay{From: from.Host, To: to.Host, Dst: dst, Port: to.Echo.Port, Small: smallPacket, Large: largest(from, to, t, dst)}
	if src, ok := sameVersion(from, dst); ok {
		n.Src = src
	}
	if t.Local.IsValid() && t.Local.Is4() == dst.Is4() {
		n.Src = t.Local
	}
	if t.Port != "" && reaches(t, n.Src, dst) {
		n.By = t
	}
	return n, ""
}

// reaches says that a tunnel's packets may have these outer addresses, src being the zero Addr where it is not known.
func reaches(t inventory.Tunnel, src, dst netip.Addr) bool {
	fits := !src.IsValid() || !t.Local.IsValid() || t.Local == src
	return fits && (t.Remote == dst || !t.Remote.IsValid() && (!t.Local.IsValid() || t.Local.Is4() == dst.Is4()))
}

// sameVersion is the one address of a host that its tunnels to dst can have; ok is false where there
// are several, or none that we know.
func sameVersion(from *plan.End, dst netip.Addr) (src netip.Addr, ok bool) {
	for _, t := range from.Tunnels {
		if t.Remote == dst && t.Local.IsValid() {
			return t.Local, true
		}
	}
	for _, a := range from.VTEPs {
		if a.Is4() == dst.Is4() {
			if ok {
				return netip.Addr{}, false
			}
			src, ok = a, true
		}
	}
	return src, ok
}

// inUnderlay asks for an exchange by the tunnel that the flows take, or tells what one showed: base
// is what is known without.
func (j *judgement) inUnderlay(l *loss, base string) finding {
	f := finding{verdict: Faulty, host: l.last.Host, kind: CauseBetweenHosts}
	l.mayBeRemembered = l.last.Kind != stain.ToTunnel // the switch that saw it last did not show that it left
	remote, err := netip.ParseAddr(l.x.TunnelRemote)
	if err != nil {
		f.cause = base
		return f
	}
	need, why := between(l.sender, l.receiver, named(l.sender.Tunnels, l.x.Port), remote)
	u := j.Underlay
	if u != nil && (u.From != l.sender.Host || u.To != l.receiver.Host || u.Dst != remote) {
		u = nil // of another question
	}
	if u == nil {
		if need == nil {
			base += "; UDP between the two could not be tried: " + why
		}
		if j.Underlay == nil {
			l.asks = need
		}
		f.cause = base
		return f
	}
	l.u = u
	what, words := u.small()
	end := fmt.Sprintf("%s's end of the tunnel", l.receiver.Host)
	if !l.narrow() {
		end = fmt.Sprintf("%s before %s", l.receiver.Host, l.next)
	}
	lead := l.goesRight()
	switch what {
	case noWay:
		f.kind, l.mayBeRemembered = CauseUnderlay, false
		f.cause = fmt.Sprintf("%s: lost in the underlay: %s", lead, words)
	case maybeNoWay:
		f.cause = fmt.Sprintf("%s: %s", base, words)
	case oneOfSeveral:
		f.kind, l.mayBeRemembered = CauseUnderlayMember, false
		f.cause = fmt.Sprintf("%s: lost on one of several ways through the underlay: %s", lead, words)
	case rife:
		f.kind, l.mayBeRemembered = CauseLoss, false
		f.cause = fmt.Sprintf("%s: the underlay loses much: %s", lead, words)
	case fleeting:
		// What was lost for a moment may be the probes, too: in a switch that stood still.
		f.verdict, f.kind = Unknown, CauseUnseen
		f.cause = fmt.Sprintf("%s; the underlay lost much for a moment: %s", base, words)
	case passable:
		f.host, f.kind = l.receiver.Host, CauseEntrypoint
		f.cause = fmt.Sprintf("%s: %s, so the packet is lost at %s, or the network drops %s", lead, words, end,
			firstOf(strings.ToUpper(named(l.sender.Tunnels, l.x.Port).Type), "the tunnel's packets"))
	default:
		f.cause = base + "; UDP between the two told nothing: " + words
		if host, ours := u.owes(); ours {
			// It would have told a way that loses some from one that loses all: what was lost may be what a rate left out.
			f.verdict, f.host, f.kind = Unknown, host, CauseAgent
		}
	}
	if _, large, ok := u.narrow(); ok {
		f.cause += "; besides, " + large
	}
	return f
}

// owes says that a fault of ours keeps an exchange from telling whether all is lost or some is, and whose agent's. Where
// none of many packets was answered all is lost, one way or the other, and where a host refuses them they came there.
func (u *Underlay) owes() (host string, ours bool) {
	switch {
	case u.Error != "" && u.Asked:
		return u.To, true
	case u.Error != "" || len(u.Sizes) == 0 || u.forward(0).sent == 0:
		return u.From, true
	case !u.Asked && !u.forward(0).nothing():
		return u.To, true
	}
	return "", false
}

// goesRight words that the tunnel is the right one.
func (l *loss) goesRight() string {
	return fmt.Sprintf("%s sends it to %s (%s, key %d) as it should", l.last.Host, l.receiver.Host, l.x.TunnelRemote, l.x.TunnelID)
}

// NeedSmall returns the exchange of small packets between two hosts, from the first to the second; nil where
// there can be none, and why.
func NeedSmall(from, to *plan.End) (n *NeedUnderlay, why string) {
	t, ok := thinnest(from, to)
	if !ok {
		return nil, fmt.Sprintf("no tunnel from %s to %s is known", from.Host, to.Host)
	}
	if n, why = between(from, to, t, t.Remote); n != nil {
		n.Large = 0
	}
	return n, why
}

// thinnest is the tunnel from one host to another that adds least to a packet: what is small shows the same by any.
func thinnest(from, to *plan.End) (best inventory.Tunnel, ok bool) {
	for _, t := range tunnelsTo(from, to) {
		if over := overhead(t); over > 0 && (!ok || over < overhead(best)) {
			best, ok = t, true
		}
	}
	return best, ok
}

// tunnelsTo are the tunnels from one host to another, each with the address where it leads.
func tunnelsTo(from, to *plan.End) (all []inventory.Tunnel) {
	at := to.VTEPs
	if len(at) == 0 && to.Echo != nil {
		at = to.Echo.At
	}
	for _, t := range from.Tunnels {
		if !t.Remote.IsValid() && len(at) > 0 { // remote_ip=flow
			t.Remote = at[0]
		}
		if slices.Contains(at, t.Remote) {
			all = append(all, t)
		}
	}
	return all
}

// NeedStream returns what a stream between two hosts needs, from the first to the second; nil where there can
// be none, and why.
func NeedStream(from, to *plan.End) (n *NeedUnderlay, why string) {
	if n, why = NeedSmall(from, to); n == nil {
		return nil, why
	}
	for _, end := range []*plan.End{from, to} {
		if !end.Echo.Streams {
			return nil, fmt.Sprintf("the agent of %s knows no streams of underlay probes", end.Host)
		}
	}
	n.Small = smallStream4
	if !n.Dst.Is4() {
		n.Small = smallStream6
	}
	return n, ""
}

// BetweenHosts returns the exchange between two hosts that a person asks for, at given tunnel addresses
// or, where these are zero, the first that fit. Its large packets are what the smaller MTU of both
// makes of the tunnel of that port or, where none is named, the one that adds most.
func BetweenHosts(from, to *plan.End, src, dst netip.Addr, tunnel string) (n *NeedUnderlay, why string) {
	for _, t := range from.Tunnels {
		if tunnel != "" && t.Port == tunnel && !dst.IsValid() {
			dst = t.Remote
		}
	}
	if !dst.IsValid() && to.Echo != nil {
		for _, a := range to.Echo.At {
			if !src.IsValid() || a.Is4() == src.Is4() {
				dst = a
				break
			}
		}
	}
	if !dst.IsValid() && to.Echo != nil && to.Echo.Port != 0 {
		return nil, fmt.Sprintf("%s answers underlay probes at no tunnel address that fits", to.Host)
	}
	var most inventory.Tunnel
	for _, t := range from.Tunnels {
		if (tunnel == "" || t.Port == tunnel) && reaches(t, src, dst) && (overhead(t) > overhead(most) || most.Port == "") {
			most = t
		}
	}
	if tunnel != "" && most.Port == "" {
		return nil, fmt.Sprintf("%s has no tunnel port %s to %s", from.Host, tunnel, dst)
	}
	n, why = between(from, to, most, dst)
	if n != nil && src.IsValid() {
		n.Src = src
	}
	return n, why
}

// Says is what can be said of the way there in one line, and of the way back; empty where nothing can.
func (u *Underlay) Says() (there, back string) {
	what, words := u.small()
	if u.Error != "" || len(u.Sizes) == 0 {
		return "", ""
	}
	switch {
	case what == noWay, what == maybeNoWay, what == unclear, what == rife, what == fleeting, what == oneOfSeveral:
		there = words
	}
	reply, large, narrow := u.narrow()
	if narrow && !reply {
		there = join(there, "path MTU: "+large)
	}
	if there == "" {
		there = words
		if last := len(u.Sizes) - 1; last > 0 && u.forward(last).dead == 0 {
			there += fmt.Sprintf(", of %d bytes too", u.Sizes[last].Bytes)
		}
	}
	t := u.reply(0)
	switch {
	case t.sent == 0:
	case narrow && reply:
		back = "path MTU: " + large
	case !u.Asked && t.came > 0:
		back = fmt.Sprintf("%d answers", t.came)
	case t.nothing():
		back = fmt.Sprintf("none of %d answers comes back", t.sent)
	case t.some():
		back = fmt.Sprintf("the answers to %d of %d source ports are lost", t.dead, t.ports)
	default:
		back = fmt.Sprintf("%d of %d answers come back", t.came, t.sent)
	}
	return there, back
}

// ago is a time in words, as exact as it matters.
func ago(d time.Duration) string {
	if d < time.Minute {
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%d min", int(d.Minutes()))
}
