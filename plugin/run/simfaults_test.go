package run

import (
	"math/rand/v2"
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/stain"
)

// simFault is one thing that is broken, and what it does to packets.
type simFault struct {
	kind    string
	outcome dyetracev1.Verdict // of a probe that it kills
	causes  []dyetracev1.CauseKind

	dies  func(p *simPacket, s simStage) bool
	sends func(p *simPacket) (host int, ok bool)             // to another host than the receiver's, -1 is nowhere
	key   func(p *simPacket, host int) (key uint32, ok bool) // by which a host knows the packet's network
	hands func(p *simPacket) *simGuest                       // to another port than the receiver's
	keeps func(p *simPacket) *simGuest                       // to a port of the sender's host, though the receiver is elsewhere
	// loses says between which hosts drops decides what is lost; share is which share of it that is in the long run, 0 where
	// that depends on how much is sent.
	loses func(from, to int) bool
	drops func(chance *rand.Rand) bool
	share float64
	// twice says between which hosts each packet arrives twice.
	twice func(from, to int) bool
	// off is whose port's link is down, port whose is gone.
	off, port *simGuest
	// large are packets that are lost where they have more bytes than most; dark is a spine that loses all, 1 or 2.
	large func(from, to int) bool
	most  int
	dark  func(from, to int) int
	// udp says whether UDP between two hosts dies as well.
	udp    func(from, to int) bool
	report func(h int, host *inventory.Host)
	flow   *dyetracev1.FlowRef // that drops
}

// simKind draws a fault that may strike a pair.
type simKind struct {
	name  string
	cross bool // the pair must be on two hosts
	draw  func(c *simCloud, a, b *simGuest) *simFault
}

const (
	faulty = dyetracev1.Verdict_VERDICT_FAULTY
	silent = dyetracev1.Verdict_VERDICT_SILENT
	policy = dyetracev1.Verdict_VERDICT_POLICY

	kindFlow        = dyetracev1.CauseKind_CAUSE_KIND_FLOW
	kindMisdirected = dyetracev1.CauseKind_CAUSE_KIND_MISDIRECTED
	kindPort        = dyetracev1.CauseKind_CAUSE_KIND_PORT
	kindRule        = dyetracev1.CauseKind_CAUSE_KIND_SECURITY_RULE
	kindStale       = dyetracev1.CauseKind_CAUSE_KIND_STALE_VTEP
	kindTunnel      = dyetracev1.CauseKind_CAUSE_KIND_TUNNEL
	kindVNI         = dyetracev1.CauseKind_CAUSE_KIND_VNI
	kindUnderlay    = dyetracev1.CauseKind_CAUSE_KIND_UNDERLAY
	kindMember      = dyetracev1.CauseKind_CAUSE_KIND_UNDERLAY_MEMBER
	kindMTU         = dyetracev1.CauseKind_CAUSE_KIND_PATH_MTU
	kindBetween     = dyetracev1.CauseKind_CAUSE_KIND_BETWEEN_HOSTS
	kindEntrypoint  = dyetracev1.CauseKind_CAUSE_KIND_ENTRYPOINT
	kindLoss        = dyetracev1.CauseKind_CAUSE_KIND_LOSS
	kindSilent      = dyetracev1.CauseKind_CAUSE_KIND_GUEST_SILENT
	kindDown        = dyetracev1.CauseKind_CAUSE_KIND_GUEST_DOWN
)

func drops(bridge string, table, priority uint32, match string) *dyetracev1.FlowRef {
	return &dyetracev1.FlowRef{Bridge: bridge, Table: table, Priority: priority, Match: match, Actions: "drop"}
}

// byAFlow is a flow that drops at a stage.
func byAFlow(at simStage, flow *dyetracev1.FlowRef, hit func(p *simPacket) bool) *simFault {
	return &simFault{outcome: faulty, causes: []dyetracev1.CauseKind{kindFlow}, flow: flow,
		dies: func(p *simPacket, s simStage) bool { return s == at && hit(p) }}
}

// onTheWire is a loss between two hosts, with or without UDP.
func onTheWire(cause dyetracev1.CauseKind, udp bool, hit func(from, to, net int) bool) *simFault {
	return &simFault{outcome: faulty, causes: []dyetracev1.CauseKind{cause},
		dies: func(p *simPacket, s simStage) bool { return s == stageWire && hit(p.from.host, p.to.host, p.to.net) },
		udp:  func(from, to int) bool { return udp && (hit(from, to, 0) || hit(from, to, 1)) }}
}

// byTheGuest is a guest that does not answer.
func byTheGuest(cause dyetracev1.CauseKind, hit func(p *simPacket) bool) *simFault {
	return &simFault{outcome: silent, causes: []dyetracev1.CauseKind{cause},
		dies: func(p *simPacket, s simStage) bool { return s == stageGuest && hit(p) }}
}

// byARule is what no security rule lets pass.
func byARule(at simStage, table uint32, hit func(p *simPacket) bool) *simFault {
	f := byAFlow(at, drops("br-int", table, 0, ""), hit)
	f.outcome, f.causes = policy, []dyetracev1.CauseKind{kindRule}
	return f
}

// third is a host that is neither of two.
func (c *simCloud) third(a, b int) int {
	for {
		if h := c.random.IntN(simHosts); h != a && h != b {
			return h
		}
	}
}

// spine is which of two ways a tunnel's packets take: a hash of addresses, which nobody chose.
func spine(from, to, port int) int { return (from*7+to*13+port*5+from*to+port/3)%2 + 1 }

// simKinds are the ways in which the cloud breaks; a and b are the ends of a pair that it strikes.
var simKinds = []simKind{
	{"flow dropped", false, func(c *simCloud, a, b *simGuest) *simFault {
		return byAFlow(stageOut, drops("br-int", 60, 110, "ip,nw_dst="+b.ip.String()), func(p *simPacket) bool { return p.from == a && p.to == b })
	}},
	{"flow shadowed", true, func(c *simCloud, a, b *simGuest) *simFault {
		return byAFlow(stageTunnel, drops("br-tun", 20, 50, "dl_vlan=1"), func(p *simPacket) bool { return p.from.host == a.host && p.to.net == b.net })
	}},
	{"dropped at the tunnel's end", true, func(c *simCloud, a, b *simGuest) *simFault {
		return byAFlow(stageIn, drops("br-tun", 4, 10, "tun_id=0x3e9"), func(p *simPacket) bool { return p.to.host == b.host && p.to.net == b.net })
	}},
	{"dropped before delivery", false, func(c *simCloud, a, b *simGuest) *simFault {
		return byAFlow(stageDelivery, drops("br-int", 60, 120, "ip,nw_dst="+b.ip.String()), func(p *simPacket) bool { return p.to == b && !p.answer })
	}},
	{"one way", false, func(c *simCloud, a, b *simGuest) *simFault {
		return byAFlow(stageOut, drops("br-int", 94, 30, "ip,nw_dst="+a.ip.String()), func(p *simPacket) bool { return p.answer && p.from == b && p.to == a })
	}},
	{"misdirected", false, func(c *simCloud, a, b *simGuest) *simFault {
		other := &simGuest{name: "other", host: b.host, ofport: 99}
		return &simFault{outcome: faulty, causes: []dyetracev1.CauseKind{kindMisdirected},
			hands: func(p *simPacket) *simGuest {
				if p.to == b {
					return other
				}
				return nil
			}}
	}},
	{"stale VTEP", true, func(c *simCloud, a, b *simGuest) *simFault {
		wrong := c.third(a.host, b.host)
		return &simFault{outcome: faulty, causes: []dyetracev1.CauseKind{kindStale},
			sends: func(p *simPacket) (int, bool) { return wrong, p.from.host == a.host && p.to == b }}
	}},
	{"learned black hole", true, func(c *simCloud, a, b *simGuest) *simFault {
		wrong := c.third(a.host, b.host)
		return &simFault{outcome: faulty, causes: []dyetracev1.CauseKind{kindStale},
			sends: func(p *simPacket) (int, bool) {
				return wrong, p.from.host == b.host && p.to == a
			}}
	}},
	{"tunnel to nowhere", true, func(c *simCloud, a, b *simGuest) *simFault {
		hit := func(from, to, net int) bool { return from == a.host && to == b.host && net == b.net }
		return &simFault{outcome: faulty, causes: []dyetracev1.CauseKind{kindTunnel},
			sends: func(p *simPacket) (int, bool) { return -1, hit(p.from.host, p.to.host, p.to.net) },
			// The port is what would know packets from there, too.
			dies: func(p *simPacket, s simStage) bool { return s == stageEnd && hit(p.to.host, p.from.host, p.to.net) },
			report: func(h int, host *inventory.Host) {
				if h != a.host {
					return
				}
				for _, tun := range host.Bridges[1].Tunnels {
					if tun.Ofport == simTunnel(b.host, b.net) {
						tun.RemoteIp = "10.1.0.254"
					}
				}
			}}
	}},
	{"wrong VNI", true, func(c *simCloud, a, b *simGuest) *simFault {
		h := []int{a.host, b.host}[c.random.IntN(2)]
		return &simFault{outcome: faulty, causes: []dyetracev1.CauseKind{kindVNI, kindTunnel},
			key: func(p *simPacket, host int) (uint32, bool) { return 2001, host == h && p.to.net == b.net }, flow: drops("br-tun", 4, 0, "")}
	}},
	{"underlay down", true, func(c *simCloud, a, b *simGuest) *simFault {
		return onTheWire(kindUnderlay, true, func(from, to, _ int) bool { return from == b.host || to == b.host })
	}},
	{"underlay ACL", true, func(c *simCloud, a, b *simGuest) *simFault {
		return onTheWire(kindUnderlay, true, func(from, to, _ int) bool { return from == a.host && to == b.host })
	}},
	{"rack down", true, func(c *simCloud, a, b *simGuest) *simFault {
		return onTheWire(kindUnderlay, true, func(from, to, _ int) bool {
			return simRack(from) != simRack(to) && (simRack(from) == simRack(a.host) || simRack(to) == simRack(a.host))
		})
	}},
	{"loss of 1 %", true, func(c *simCloud, a, b *simGuest) *simFault { return partial(0.01, a, b) }},
	{"loss of 5 %", true, func(c *simCloud, a, b *simGuest) *simFault { return partial(0.05, a, b) }},
	{"loss of 20 %", true, func(c *simCloud, a, b *simGuest) *simFault { return partial(0.2, a, b) }},
	{"rate limit", true, func(c *simCloud, a, b *simGuest) *simFault {
		return limited(40+c.random.IntN(60), 4+c.random.IntN(16), b)
	}},
	{"packets twice", true, func(c *simCloud, a, b *simGuest) *simFault {
		return &simFault{twice: func(from, to int) bool { return from == a.host && to == b.host }}
	}},
	{"port open", false, func(c *simCloud, a, b *simGuest) *simFault {
		c.open[b.name] = true
		return &simFault{}
	}},
	{"ToS cleared", false, func(c *simCloud, a, b *simGuest) *simFault {
		c.mute[b.name] = true
		return &simFault{}
	}},
	{"underlay blocks the tunnel's protocol", true, func(c *simCloud, a, b *simGuest) *simFault {
		return onTheWire(kindEntrypoint, false, func(from, to, net int) bool { return from == a.host && to == b.host && net == b.net })
	}},
	{"one of two ways", true, func(c *simCloud, a, b *simGuest) *simFault {
		dark := 1 + c.random.IntN(2)
		f := onTheWire(kindMember, false, func(from, to, net int) bool { return from == a.host && spine(from, to, net) == dark })
		f.dark = func(from, _ int) int {
			if from == a.host {
				return dark
			}
			return 0
		}
		return f
	}},
	{"path MTU", true, func(c *simCloud, a, b *simGuest) *simFault {
		most := 1400
		if simLargest(b.net) > 1495 && (a.host+b.host)%2 == 0 {
			most = 1495 // what the other tunnel between the two hosts makes of packets passes
		}
		return &simFault{causes: []dyetracev1.CauseKind{kindMTU}, most: most, large: func(from, to int) bool { return from == a.host && to == b.host }}
	}},
	{"security rule", false, func(c *simCloud, a, b *simGuest) *simFault {
		return byARule(stageDelivery, 82, func(p *simPacket) bool { return p.to == b && !p.answer })
	}},
	{"security rule for tcp", false, func(c *simCloud, a, b *simGuest) *simFault {
		return byARule(stageDelivery, 82, func(p *simPacket) bool { return p.to == b && !p.answer && p.scheme == stain.TCP })
	}},
	{"security rule of the sender", false, func(c *simCloud, a, b *simGuest) *simFault {
		return byARule(stageOut, 72, func(p *simPacket) bool { return p.from == a && !p.answer })
	}},
	{"guest down", false, func(c *simCloud, a, b *simGuest) *simFault {
		f := byTheGuest(kindDown, func(p *simPacket) bool { return p.to == b })
		f.off = b
		f.report = func(h int, host *inventory.Host) {
			for _, e := range host.Endpoints {
				if e.Port == b.port() {
					e.LinkState = "down"
				}
			}
		}
		return f
	}},
	{"guest silent", false, func(c *simCloud, a, b *simGuest) *simFault {
		return byTheGuest(kindSilent, func(p *simPacket) bool { return p.to == b })
	}},
	{"duplicate MAC, by address", false, func(c *simCloud, a, b *simGuest) *simFault {
		// Where ports are known by what the controller says, the guest gets its frames still, and they are not for what it calls itself.
		return byTheGuest(kindSilent, func(p *simPacket) bool { return p.to == b })
	}},
	{"duplicate MAC, learned", false, func(c *simCloud, a, b *simGuest) *simFault {
		// All switches that learn have heard the other guest last: what is for b goes to where that one is.
		o := c.other(b)
		return &simFault{outcome: faulty, causes: []dyetracev1.CauseKind{kindMisdirected, kindStale},
			hands: func(p *simPacket) *simGuest { return when(p.to == b && o.host == b.host, o) },
			keeps: func(p *simPacket) *simGuest { return when(p.to == b && o.host == p.from.host && o.host != b.host, o) },
			sends: func(p *simPacket) (int, bool) {
				return o.host, p.to == b && o.host != b.host && o.host != p.from.host
			}}
	}},
	{"guest drops tcp", false, func(c *simCloud, a, b *simGuest) *simFault {
		return byTheGuest(kindSilent, func(p *simPacket) bool { return p.to == b && !p.answer && p.scheme == stain.TCP })
	}},
	{"port gone", false, func(c *simCloud, a, b *simGuest) *simFault {
		return &simFault{outcome: faulty, causes: []dyetracev1.CauseKind{kindPort}, port: b, flow: &dyetracev1.FlowRef{Bridge: "br-int", Table: 60, Actions: "NORMAL"},
			dies: func(p *simPacket, s simStage) bool {
				return s == stageDelivery && p.to == b || s == stageEntry && p.from == b
			},
			report: func(_ int, host *inventory.Host) {
				host.Endpoints = slices.DeleteFunc(host.Endpoints, func(e *dyetracev1.Endpoint) bool { return e.Port == b.port() })
			}}
	}},
	{"patch gone", true, func(c *simCloud, a, b *simGuest) *simFault {
		gone := []int{a.host, b.host}[c.random.IntN(2)]
		f := &simFault{outcome: faulty, causes: []dyetracev1.CauseKind{kindPort},
			dies: func(p *simPacket, s simStage) bool {
				return s == stagePatchOut && p.from.host == gone || s == stagePatchIn && p.to.host == gone
			}}
		noticed := c.random.IntN(2) == 0 // by the agent, whose hooks then have no such points
		f.report = func(h int, host *inventory.Host) {
			if h != gone {
				return
			}
			host.Bridges[0].UplinkBridge = ""
			if noticed {
				host.Bridges[0].Kinds = slices.DeleteFunc(host.Bridges[0].Kinds, func(k dyetracev1.PointKind) bool {
					return k == dyetracev1.PointKind_POINT_KIND_FROM_TUNNEL
				})
				host.Bridges[1].Kinds = []dyetracev1.PointKind{dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE, dyetracev1.PointKind_POINT_KIND_FROM_TUNNEL}
			}
		}
		if before := c.gone; noticed {
			c.gone = func(h int, bridge string, kind stain.Kind) bool {
				return h == gone && (bridge == "br-int" && kind == stain.FromTunnel || bridge == "br-tun" && kind == stain.ToTunnel) ||
					before != nil && before(h, bridge, kind)
			}
		}
		return f
	}},
}

// partial has one host lose a share of what it sends another.
func partial(share float64, a, b *simGuest) *simFault {
	return &simFault{kind: "loss", outcome: faulty, causes: []dyetracev1.CauseKind{kindLoss}, share: share,
		loses: func(from, to int) bool { return from == a.host && to == b.host },
		drops: func(chance *rand.Rand) bool { return chance.Float64() < share }}
}

// limited passes so many packets a second to a host, and some ahead.
func limited(rate, burst int, b *simGuest) *simFault {
	room, at := float64(burst), time.Time{}
	return &simFault{outcome: faulty, causes: []dyetracev1.CauseKind{kindLoss},
		loses: func(from, to int) bool { return from != b.host && to == b.host },
		drops: func(*rand.Rand) bool {
			now := time.Now()
			if !at.IsZero() {
				room = min(room+float64(rate)*now.Sub(at).Seconds(), float64(burst))
			}
			if at = now; room < 1 {
				return true
			}
			room--
			return false
		}}
}

// other is another guest of the same network.
func (c *simCloud) other(b *simGuest) *simGuest {
	for {
		if o := c.guests[c.random.IntN(len(c.guests))]; o != b && o.net == b.net {
			return o
		}
	}
}

func when(is bool, g *simGuest) *simGuest {
	if !is {
		return nil
	}
	return g
}

// breakBy has n faults strike pairs of the cloud.
func (c *simCloud) breakBy(n int, random *rand.Rand) {
	for len(c.faults) < n {
		k := simKinds[random.IntN(len(simKinds))]
		if a, b, ok := c.pair(k.cross); ok {
			f := k.draw(c, a, b)
			f.kind = k.name
			c.faults = append(c.faults, f)
		}
	}
}

// pair draws two guests of a network, on two hosts where they must be.
func (c *simCloud) pair(cross bool) (a, b *simGuest, ok bool) {
	for range 50 {
		a, b = c.guests[c.random.IntN(len(c.guests))], c.guests[c.random.IntN(len(c.guests))]
		if a != b && a.net == b.net && (!cross || a.host != b.host) {
			return a, b, true
		}
	}
	return nil, nil, false
}
