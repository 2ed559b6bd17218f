package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// TestSchemes checks the default lab in every way that pairs can be probed.
func TestSchemes(t *testing.T) {
	t.Parallel()
	l := up(t)
	for _, probes := range allTraffic {
		c := l.check(0, "--all", "--scheme", probes.scheme, "--ip", probes.ip)
		checkHealthy(t, c)
		for _, p := range c.Pairs {
			src, serr := netip.ParseAddr(p.SrcIP)
			dst, derr := netip.ParseAddr(p.DstIP)
			if serr != nil || derr != nil || src.Is4() != (probes.ip == "4") || dst.Is4() != src.Is4() || p.Scheme != probes.scheme {
				t.Errorf("%v: by %s from %s to %s (want %v)", p, p.Scheme, p.SrcIP, p.DstIP, probes)
			}
		}
	}
	once := 0
	for try := 0; try < 5 && once < 58/2; try++ { // where the machine stands still, whatever is under way then is asked for again
		once = 0
		for _, p := range l.check(0, "--all").Pairs {
			if p.Scheme != "tcp" || p.Reason == "" || !strings.HasPrefix(p.SrcIP, "10.") {
				t.Errorf("%v: by %s (%q), from %s (want tcp over IPv4, and why)", p, p.Scheme, p.Reason, p.SrcIP)
			}
			if p.Probes == 1 {
				once++
			}
		}
	}
	if once < 58/2 && patient(1) == 1 {
		t.Errorf("%d of 58 pairs were probed once, in the best of five checks", once)
	}
	c := l.check(0, "blue-1", "green-4", "--no-touch", "--ip", "6")
	if p := c.Pairs[0]; !p.NoTouch || p.Probes < 2 || len(p.Samples) != 10 {
		t.Errorf("%v: no-touch %v, %d probes, %d points (want a probe each way at the least, ten points)", p, p.NoTouch, p.Probes, len(p.Samples))
	}
}

// TestGuests has guests that mislead probes; auto must find the right verdict for each, and say
// which scheme it is from.
func TestGuests(t *testing.T) {
	t.Parallel()
	l := up(t)
	for _, tt := range []struct {
		kind, guest     string
		verdict, scheme string
		cause, reason   string // parts of them
	}{
		{kind: "tos-cleared", guest: "blue-2", verdict: "healthy", scheme: "tcp"},
		{kind: "port-open", guest: "green-2", verdict: "healthy", scheme: "tcp"},
		{kind: "guest-firewall", guest: "green-2", verdict: "silent", scheme: "tcp", cause: "green-2 does not answer"},
		{kind: "guest-drops-tcp", guest: "green-4", verdict: "healthy", scheme: "icmp", reason: "tcp is delivered but not answered"},
		{kind: "security-rule-port", guest: "green-1", verdict: "policy", scheme: "tcp", cause: "icmp echo passes"},
		{kind: "security-rule", guest: "green-1", verdict: "policy", scheme: "tcp", cause: "icmp echo is denied"},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			l := l.with(t)
			l.must("lab", "break", tt.kind, tt.guest)
			defer l.must("lab", "heal", tt.kind)
			for _, ip := range []string{"4", "6"} {
				code := 1
				if tt.verdict == "healthy" {
					code = 0
				}
				for _, p := range l.check(code, "--network", "green", "--ip", ip).Pairs {
					if p.Dst != tt.guest {
						if p.Verdict != "healthy" {
							t.Errorf("%v (want healthy)", p)
						}
						continue
					}
					if p.Verdict != tt.verdict || p.Scheme != tt.scheme || !strings.Contains(p.Cause, tt.cause) || !strings.Contains(p.Reason, tt.reason) {
						t.Errorf("%v; by %s: %q (want %s by %s, %q, %q)", p, p.Scheme, p.Reason, tt.verdict, tt.scheme, tt.cause, tt.reason)
					}
					missing := slices.IndexFunc(p.Samples, func(s sample) bool { return !s.Seen })
					if (tt.verdict == "healthy") != (missing < 0) {
						t.Errorf("%v: %d is the first point that did not see it, of %d", p, missing, len(p.Samples))
					}
				}
			}
		})
	}
	t.Run("answer-dropped", func(t *testing.T) { l.with(t).tryDroppedAnswer(t) })
	checkHealthy(t, l.check(0, "--all"))
}

// tryDroppedAnswer has flows drop what guests that listen say to a SYN, and pass what others do: what is named is what dropped the very
// answer that was seen.
func (l *lab) tryDroppedAnswer(t *testing.T) {
	l.must("lab", "break", "port-open", "green-2")
	defer l.must("lab", "heal", "port-open")
	ask := func(code int) pair {
		return l.check(code, "green-4", "green-2", "--scheme", "tcp").Pairs[0]
	}
	flow := "table=0,priority=30000,tcp,tcp_flags=+syn+ack,nw_src=" + ask(0).DstIP
	l.node("hv2", "ovs-ofctl", "add-flow", "br-int", flow+",actions=drop")
	defer l.node("hv2", "ovs-ofctl", "--strict", "del-flows", "br-int", flow)
	p := ask(1)
	if p.Verdict != "faulty" || p.CauseKind != "flow" || !strings.Contains(p.Cause, "tcp_flags=+syn+ack") || !strings.Contains(p.Command, "tcp_flags=syn|ack") {
		t.Errorf("%v, by %q (want the flow)", p, p.Command)
	}
}

// TestSix checks a lab with networks of IPv6 alone, one of which has link-local and unique local
// addresses only.
func TestSix(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "six")
	for _, tt := range []struct {
		args  []string
		pairs int
	}{
		{[]string{"--all"}, 14},
		{[]string{"--all", "--ip", "6"}, 14},
		{[]string{"--all", "--ip", "4"}, 2},
		{[]string{"--all", "--ip", "6", "--scheme", "icmp"}, 14},
		{[]string{"--all", "--ip", "6", "--no-touch"}, 14},
		{[]string{"gold/fd00:8::11", "gold-2"}, 1},
		{[]string{"gold/fe80::f816:3eff:fe00:80b", "gold-2"}, 1},
		{[]string{"jade-1", "amber-2"}, 1},
	} {
		c := l.check(0, tt.args...)
		if c.Counts["healthy"] != tt.pairs || len(c.Pairs) != tt.pairs {
			t.Errorf("check %v: %v (want %d healthy)", tt.args, c.Counts, tt.pairs)
		}
		for _, p := range c.Pairs {
			if i := slices.IndexFunc(p.Samples, func(s sample) bool { return !s.Seen }); i >= 0 {
				t.Errorf("check %v: %v: point %d not seen", tt.args, p, i)
			}
		}
	}
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"check", "gold-1", "gold-2", "--ip", "4"}, []string{"src", "gold-1", "IPv4"}},
		{[]string{"check", "gold-1", "gold-2", "--ip", "5"}, []string{"--ip", "5", "4", "6"}},
		{[]string{"check", "gold-1", "gold-2", "--scheme", "udp"}, []string{"--scheme", "udp", "tcp", "icmp"}},
		{[]string{"check", "--network", "gold", "--ip", "4"}, []string{"gold", "IPv4"}},
	} {
		r := l.dyetrace(tt.args...)
		for _, w := range tt.want {
			if r.code != 2 || !strings.Contains(r.stderr, w) {
				t.Errorf("dyetrace %v: exit %d (want 2, naming %q)\n%s", tt.args, r.code, w, r.stderr)
			}
		}
	}
}
