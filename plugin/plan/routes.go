package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/stain"
)

// Routes is what the fabric's routing protocol says of where instances are, at one time. It is
// nil where nobody is asked.
type Routes interface {
	// MAC says where a MAC address is in the network of a VNI.
	MAC(vni uint32, mac stain.MAC) Learned
	// IP says where an address is in the network of a VNI, by the longest prefix that holds it.
	// One that holds other addresses, too, says so by Learned.Prefix, and is told only where no
	// longer one can be missing.
	IP(vni uint32, addr netip.Addr) Learned
}

// Learned is what routes say of one address.
type Learned struct {
	State LearnedState
	// VTEPs are of Present: one or more, in a fixed order. Shared, never changed.
	VTEPs []netip.Addr
	// Prefix is of IP routes for more than the one address; invalid otherwise. They say where a
	// router is: it may have the address, or pass on what is for it.
	Prefix netip.Prefix
	// Segment says that it is at all VTEPs by right: they are on one Ethernet segment (RFC 7432, 8.4).
	Segment bool
	// Since is when they became the answer.
	Since time.Time
	// Sequence is of MAC mobility (RFC 7432, section 7.7).
	Sequence uint32
	// Sticky says that the MAC shall not move, Stale that all who said so restarted and have not
	// said it again (RFC 4724, section 4.2).
	Sticky, Stale bool
}

// LearnedState is what can be said at all.
type LearnedState uint8

// States.
const (
	// NotAsked: no speaker is configured, or the network has no segmentation_id.
	NotAsked LearnedState = iota
	// Present: it is at Learned.VTEPs.
	Present
	// Absent: all peers told all that they know, and it was not among it.
	Absent
	// NotKnown: peers have not told all yet, or a route for it was refused.
	NotKnown
)

func (s LearnedState) String() string {
	switch s {
	case NotAsked:
		return "not asked"
	case Present:
		return "present"
	case Absent:
		return "absent"
	}
	return "not known"
}

// EVPN words what routes say of an end of the path: "10.1.2.4 (hv4) since 10:42:03, 5m ago", by a
// prefix "10.0.0.0/16 at 10.1.2.4 …", or "no route"; empty where they do not say.
func (p *Path) EVPN(e *End) string {
	switch e.Learned.State {
	case Present:
		return e.Learned.words(p.VTEPs, p.Now)
	case Absent:
		return "no route"
	}
	return ""
}

// Disagree returns, of each end whose host routes and inventory do not agree about, what both
// say, in words; in no-touch of the destination alone, since the source is that of the way back.
func (p *Path) Disagree() []string {
	var texts []string
	for _, e := range []*End{&p.From, &p.To} {
		if e.Disagree != "" && (e == &p.To || !p.NoTouch) {
			texts = append(texts, e.Disagree)
		}
	}
	return texts
}

func (l *Learned) words(owners map[netip.Addr]string, now time.Time) string {
	at := make([]string, len(l.VTEPs))
	for i, a := range l.VTEPs {
		at[i] = a.String()
		if host := owners[a]; host != "" {
			at[i] += fmt.Sprintf(" (%s)", host)
		}
	}
	text := strings.Join(at, " and ")
	if l.Prefix.IsValid() {
		text = fmt.Sprintf("%s at %s", l.Prefix, text)
	}
	if !l.Since.IsZero() {
		layout := time.TimeOnly
		if now.Sub(l.Since) >= 24*time.Hour {
			layout = time.DateTime
		}
		text += fmt.Sprintf(" since %s, %s ago", l.Since.In(now.Location()).Format(layout), age(now.Sub(l.Since)))
	}
	if l.Stale {
		text += ", not confirmed since its peer restarted"
	}
	return text
}

// age rounds down to the largest unit: it is to be read, not to be reckoned with.
func age(d time.Duration) string {
	switch {
	case d < time.Second: // a clock that was set back, too
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// learn returns what routes say of an instance: by its MAC address, where that says nothing by its
// IP addresses, and where there is no route for any of these, and none can be missing, by the prefix
// that the first is in.
func learn(in inventory.Instance, n inventory.Network, r Routes) Learned {
	if r == nil || n.SegmentationID == 0 {
		return Learned{}
	}
	l := r.MAC(n.SegmentationID, in.MAC)
	if l.State == Present || l.State == NotAsked {
		return l
	}
	var prefix Learned
	for _, a := range in.IPs {
		switch by := r.IP(n.SegmentationID, a); {
		case by.alone():
			return by
		case by.State == Present && prefix.State != Present:
			prefix = by
		case by.State == NotKnown:
			l = by // its MAC may be absent, and yet it is not known to be nowhere
		}
	}
	if l.State == Absent && prefix.State == Present {
		return prefix
	}
	return l
}

// alone says that there is a route for no other address.
func (l *Learned) alone() bool { return l.State == Present && !l.Prefix.IsValid() }

// compare words for both ends where routes and inventory do not agree. That an instance has no
// route of its own is worth a word only if the other end has one: there are networks that never
// enter EVPN.
func (w *way) compare(snap *inventory.Snapshot, o Options) {
	w.from.Learned, w.to.Learned = learn(w.pair.Src, w.srcNet, o.Routes), learn(w.pair.Dst, w.dstNet, o.Routes)
	from, to := w.from.Learned.alone(), w.to.Learned.alone()
	w.from.compare(snap, w.pair.Src, to, o.Now)
	w.to.compare(snap, w.pair.Dst, from, o.Now)
}

func (s *site) compare(snap *inventory.Snapshot, in inventory.Instance, other bool, now time.Time) {
	var evpn string
	switch l := &s.Learned; {
	case l.State == Present && s.Contradicted(snap.VTEPs()) && (other || l.alone()):
		evpn = "EVPN says " + l.words(snap.VTEPs(), now)
	case l.State == Absent && other && s.Host != "":
		evpn = "EVPN has no route for it"
	default:
		return
	}
	s.End.Disagree = fmt.Sprintf("%s: inventory says %s, %s", in.Name, s.Place(), evpn)
	s.Confirmed = s.Confirmed && !s.twin(snap, in)
}

// twin says that an agent reports a port that fits on a host where routes have the instance instead:
// which of the two is left over, nobody tells.
func (s *site) twin(snap *inventory.Snapshot, in inventory.Instance) bool {
	for _, a := range s.Learned.VTEPs {
		host := snap.VTEPs()[a]
		if host == "" || host == s.Host {
			continue
		}
		h, _ := snap.Host(host)
		for _, e := range h.Endpoints {
			mac, err := stain.ParseMAC(e.GetMac())
			if e.GetIfaceId() == in.Ref() || err == nil && mac == in.MAC && !another(snap, in, host, e) {
				return true
			}
		}
	}
	return false
}

// another says that a port is of another instance, which has the same MAC address in its network.
func another(snap *inventory.Snapshot, in inventory.Instance, host string, e *dyetracev1.Endpoint) bool {
	return slices.ContainsFunc(snap.Instances(), func(o inventory.Instance) bool {
		if o.MAC != in.MAC || o.Ref() == in.Ref() {
			return false
		}
		at, err := snap.Endpoint(o)
		return err == nil && at.Host == host && at.Bridge == e.GetBridge() && at.Port == e.GetPort()
	})
}

// On says whether routes lead to a host, by its tunnel addresses.
func (l *Learned) On(host string, owners map[netip.Addr]string) bool {
	return host != "" && slices.ContainsFunc(l.VTEPs, func(a netip.Addr) bool { return owners[a] == host })
}

// Contradicted says that routes lead to another place than the end's host, or there as well, unless
// it is on one Ethernet segment with the host. A tunnel address that nobody is known to have is
// another place if the host's are known.
func (e *End) Contradicted(owners map[netip.Addr]string) bool {
	if e.Learned.Segment && (e.Learned.On(e.Host, owners) || slices.ContainsFunc(e.VTEPs, func(a netip.Addr) bool {
		return slices.Contains(e.Learned.VTEPs, a)
	})) {
		return false
	}
	return e.Learned.State == Present && e.Host != "" && slices.ContainsFunc(e.Learned.VTEPs, func(a netip.Addr) bool {
		owner := owners[a]
		return owner != e.Host && !slices.Contains(e.VTEPs, a) && (owner != "" || len(e.VTEPs) > 0)
	})
}

// Place words where the inventory has the end: its host, and the tunnel addresses if known.
func (e *End) Place() string {
	if len(e.VTEPs) == 0 {
		return e.Host
	}
	texts := make([]string, len(e.VTEPs))
	for i, a := range e.VTEPs {
		texts[i] = a.String()
	}
	return fmt.Sprintf("%s (%s)", e.Host, strings.Join(texts, ", "))
}
