package lab

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// CauseLogical is the cause of breaks of OVN's logical network: flows do as it says.
const CauseLogical = "logical"

// allBreakKinds are the ways to break a lab: see breakKinds.
var allBreakKinds = slices.Concat(breakKinds, ovnBreakKinds)

// ovnBreakKinds are those that need OVN, by what an operator of it could do, or by what could befall
// its daemons. Where OVN knows that an instance is nowhere, packets die on the sender's host.
var ovnBreakKinds = []BreakKind{
	{
		Name: "acl-drop", Form: "INSTANCE", Default: "front-4", Topology: withOVN, Cause: CausePolicy,
		Help:  "an ACL drops all IP that is for the instance",
		dies:  func(t target, l leg) segment { return diesIf(t.request(l), atDelivery) },
		apply: func(_ workshop, t target) []step { return addACL(t, "quarantine", "to-lport", "outport", "ip", "drop") },
		heal:  func(_ workshop, t target) []step { return delACL(t, "to-lport", "outport", "ip") },
	},
	{
		Name: "acl-drop-tcp", Form: "INSTANCE", Default: "back-2", Topology: withOVN, Cause: CausePolicy,
		Help:  "an ACL drops all TCP that is for the instance; ping passes",
		dies:  func(t target, l leg) segment { return diesIf(t.request(l) && l.Scheme == TCP, atDelivery) },
		apply: func(_ workshop, t target) []step { return addACL(t, "", "to-lport", "outport", "tcp", "drop") },
		heal:  func(_ workshop, t target) []step { return delACL(t, "to-lport", "outport", "tcp") },
	},
	{
		Name: "acl-drop-out", Form: "INSTANCE", Default: "front-1", Topology: withOVN, Cause: CausePolicy,
		Help:  "an ACL drops all IP that the instance sends first",
		dies:  func(t target, l leg) segment { return diesIf(!l.answer && l.from == t.instance(), inSwitch) },
		apply: func(_ workshop, t target) []step { return addACL(t, "", "from-lport", "inport", "ip", "drop") },
		heal:  func(_ workshop, t target) []step { return delACL(t, "from-lport", "inport", "ip") },
	},
	{
		Name: "lport-gone", Form: "INSTANCE", Default: "back-3", Topology: withOVN, Cause: CauseLogical,
		Help: "the instance's logical port is deleted",
		dies: fromOrTo(inSwitch),
		apply: func(_ workshop, t target) []step {
			return nbctl(t, []string{"--if-exists", "lsp-del", t.instance().PortID()})
		},
		heal: func(_ workshop, t target) []step { return replugLogically(t) },
	},
	{
		Name: "lport-address", Form: "INSTANCE", Default: "front-3", Topology: withOVN, Cause: CauseLogical,
		Help: "port security has another address than the instance: it drops what the instance sends, and what is for it",
		dies: fromOrTo(atDelivery),
		apply: func(_ workshop, t target) []step {
			wrong := t.instance()
			wrong.IP = unusedAddresses(t.networkMeant())
			return nbctl(t, []string{"lsp-set-port-security", wrong.PortID(), wrong.PortSecurity()})
		},
		heal: func(_ workshop, t target) []step {
			return nbctl(t, []string{"lsp-set-port-security", t.instance().PortID(), t.instance().PortSecurity()})
		},
	},
	{
		Name: "lport-disabled", Form: "INSTANCE", Default: "front-2", Topology: withOVN, Cause: CauseLogical,
		Help: "the instance's logical port is disabled",
		dies: fromOrTo(inSwitch),
		apply: func(_ workshop, t target) []step {
			return nbctl(t, []string{"lsp-set-enabled", t.instance().PortID(), "disabled"})
		},
		heal: func(_ workshop, t target) []step {
			return nbctl(t, []string{"clear", "Logical_Switch_Port", t.instance().PortID(), "enabled"})
		},
	},
	{
		Name: "lport-unbound", Form: "INSTANCE", Default: "front-4", Topology: withOVN, Cause: CausePort,
		Help:  "the instance's interface has another iface-id than its logical port, so that no host has the port",
		dies:  fromOrTo(inSwitch),
		apply: func(_ workshop, t target) []step { return ifaceID(t, "00000000-0000-0000-0000-000000000000") },
		heal:  func(_ workshop, t target) []step { return ifaceID(t, t.instance().PortID()) },
	},
	{
		Name: "route-discarded", Form: "INSTANCE", Default: "back-1", Topology: withOVN, Cause: CauseLogical, needsRouter: true,
		Help: "the logical router has a route for the instance that discards",
		dies: func(t target, l leg) segment {
			return diesIf(l.to == t.instance() && l.from.Network != l.to.Network, inSwitch)
		},
		apply: func(_ workshop, t target) []step { return hostRoutes(t, "--may-exist", "lr-route-add", "discard") },
		heal:  func(_ workshop, t target) []step { return hostRoutes(t, "--if-exists", "lr-route-del", "") },
	},
	{
		Name: "route-missing", Form: "NETWORK", Default: "back", Topology: withOVN, Cause: CauseLogical, needsRouter: true,
		Help: "the logical router has no port to the network, and so no route to it",
		dies: func(t target, l leg) segment {
			routed := l.from.Network != l.to.Network
			return diesIf(routed && (l.from.Network == t.network().Name || l.to.Network == t.network().Name), inSwitch)
		},
		apply: func(_ workshop, t target) []step {
			port, peer := t.network().RouterPortNames()
			return nbctl(t, []string{"--if-exists", "lrp-del", port}, []string{"--if-exists", "lsp-del", peer})
		},
		heal: func(_ workshop, t target) []step { return nbctl(t, t.network().RouterPort()...) },
	},
	{
		Name: "encap-wrong", Form: "HOST", Default: "hv3", Topology: withOVN, Cause: CauseTunnel,
		Help: "the host says of itself that its tunnel end is at another address (ovn-encap-ip), and others send to that",
		// Both ways: others also know what comes from the host by that address.
		dies:  func(t target, l leg) segment { return diesIf(t.sends(l) || t.receives(l), onWire) },
		apply: func(_ workshop, t target) []step { return encapIP(t, unusedAddress(t.hosts[0].VTEP).String()) },
		heal:  func(_ workshop, t target) []step { return encapIP(t, t.hosts[0].VTEP.Addr().String()) },
	},
	{
		Name: "chassis-stale", Form: "HOST:INSTANCE", Default: "hv1:back-2", Topology: withOVN, Cause: CauseStale,
		Help:  "the host's ovn-controller hangs with flows that send what is for the instance to a hypervisor where it is not",
		dies:  func(t target, l leg) segment { return diesIf(t.sends(l) && l.to == t.instance(), onWire) },
		apply: staleChassis, heal: freshChassis,
		changed: func(_ workshop, t target) Change { return Change{Host: t.host()} },
	},
	{
		Name: "ovn-stopped", Form: "HOST", Default: "hv2", Topology: withOVN, Cause: CauseNone,
		Help:  "the host's ovn-controller is stopped and leaves its flows; nothing is lost until something changes",
		dies:  func(target, leg) segment { return unharmed },
		apply: func(_ workshop, t target) []step { return []step{stopController(t.host())} },
		heal:  func(_ workshop, t target) []step { return []step{startController(t.host()), awaitOVN(t.spec)} },
	},
	{
		Name: "foreign-drop", Form: "SRC:DST", Default: "front-1:front-3", Topology: withOVN, Cause: CauseFlow,
		Help: "a flow on the source's br-int, which is not OVN's, drops what it sends to the destination",
		dies: func(t target, l leg) segment { return diesIf(l.from == t.src() && l.to == t.dst(), inSwitch) },
		apply: func(w workshop, t target) []step {
			in := fmt.Sprintf("in_port=%d", w.ports(t.src().Host).Taps[t.src().Name])
			return []step{{where: t.src().Host, stdin: bundle(nil, foreignDrops(t, in)), argv: []string{"ovs-ofctl", "bundle", overlay.Integration, "-"}}}
		},
		heal: func(_ workshop, t target) []step {
			return []step{{where: t.src().Host, argv: []string{"ovs-ofctl", "del-flows", overlay.Integration, "cookie=" + foreignCookie + "/-1"}}}
		},
		changed: func(w workshop, t target) Change {
			in := fmt.Sprintf("in_port=%d", w.ports(t.src().Host).Taps[t.src().Name])
			return Change{Host: t.src().Host, Bridge: overlay.Integration, Flows: changedFlows(foreignDrops(t, in))}
		},
	},
}

// foreignCookie is of flows that somebody made by hand.
const foreignCookie = "0xbadf00d"

func foreignDrops(t target, match string) []flow {
	list := drops(t.dst(), 0, 1000, match)
	for i := range list {
		list[i].Cookie = foreignCookie
	}
	return list
}

// fromOrTo: what the instance sends does not leave its bridge, what is for it dies in to.
func fromOrTo(to segment) func(t target, l leg) segment {
	return func(t target, l leg) segment {
		if l.from == t.instance() {
			return inSwitch
		}
		return diesIf(l.to == t.instance(), to)
	}
}

// onCentral runs a command on the node with OVN's databases.
func onCentral(s *overlay.Spec, argv ...string) step { return step{where: s.OVN.Central, argv: argv} }

// nbctl does things to the northbound database in one transaction, and returns once every
// ovn-controller has done its part.
func nbctl(t target, list ...[]string) []step {
	return []step{onCentral(t.spec, append([]string{"ovn-nbctl"}, commands(list)...)...), awaitOVN(t.spec)}
}

// awaitOVN returns once every ovn-controller has done what the northbound database says; if one
// hangs, or is stopped, after a time in which the others have.
func awaitOVN(s *overlay.Spec) step {
	return onCentral(s, "sh", "-c", "ovn-nbctl --timeout=5 --wait=hv sync || ovn-nbctl --timeout=30 --wait=sb sync")
}

// ACLs of breaks stand above those of the overlay.
const aclPriority = "2000"

func aclMatch(t target, port, match string) string {
	return fmt.Sprintf("%s == %q && %s", port, t.instance().PortID(), match)
}

// addACL adds an ACL for the target's port. One with a name is logged, too (ovn-nbctl(8)).
func addACL(t target, name, direction, port, match, action string) []step {
	add := []string{"--may-exist", "acl-add", t.instance().Network, direction, aclPriority, aclMatch(t, port, match), action}
	if name != "" {
		add = slices.Insert(add, 1, "--name="+name)
	}
	return nbctl(t, add)
}

// delACL deletes what addACL added.
func delACL(t target, direction, port, match string) []step {
	return nbctl(t, []string{"acl-del", t.instance().Network, direction, aclPriority, aclMatch(t, port, match)})
}

// replugLogically makes the target's logical port anew. The groups forgot it when it went.
func replugLogically(t target) []step {
	i := t.instance()
	const join = `ovn-nbctl --timeout=30 add Port_Group "$0" ports $(ovn-nbctl --timeout=30 get Logical_Switch_Port "$1" _uuid)`
	steps := []step{onCentral(t.spec, append([]string{"ovn-nbctl"}, commands(t.spec.LogicalPort(i))...)...)}
	for _, group := range t.spec.Groups(i) {
		steps = append(steps, onCentral(t.spec, "sh", "-e", "-c", join, group, i.PortID()))
	}
	return append(steps, awaitOVN(t.spec))
}

// unusedAddresses are addresses of a network that no instance has.
func unusedAddresses(n overlay.Network) overlay.Addrs {
	last := func(v overlay.Version) (a netip.Addr) {
		if n.Has(v) {
			b := n.CIDR.Of(v).Addr().AsSlice()
			b[len(b)-1] = 250
			a, _ = netip.AddrFromSlice(b)
		}
		return a
	}
	return overlay.Addrs{V4: last(overlay.V4), V6: last(overlay.V6)}
}

// ifaceID changes what OVN knows the target's interface by.
func ifaceID(t target, id string) []step {
	i := t.instance()
	return []step{vsctl(i.Host, "set", "Interface", i.Tap(), "external_ids:iface-id="+id), awaitBinding(t.spec, i, id == i.PortID()), awaitOVN(t.spec)}
}

// awaitBinding returns once a host has the instance's logical port, or none has it.
func awaitBinding(s *overlay.Spec, i overlay.Instance, bound bool) step {
	not := "!"
	if bound {
		not = ""
	}
	script := fmt.Sprintf(`for n in $(seq 200); do
 chassis=$(ovn-sbctl --timeout=30 --bare --columns=chassis find Port_Binding logical_port="$0"); [ %s -n "$chassis" ] && exit 0; sleep 0.05
done; exit 1`, not)
	return onCentral(s, "sh", "-c", script, i.PortID())
}

// hostRoutes changes the router's routes for the target's addresses.
func hostRoutes(t target, option, command, hop string) []step {
	var list [][]string
	for _, ip := range t.instance().IP.All() {
		c := []string{option, command, t.networkMeant().Router, netip.PrefixFrom(ip, ip.BitLen()).String()}
		if hop != "" {
			c = append(c, hop)
		}
		list = append(list, c)
	}
	return nbctl(t, list...)
}

// encapIP changes where the host says that its tunnel end is, and returns once all others have heard.
func encapIP(t target, address string) []step {
	steps := []step{vsctl(t.host(), "set", "Open_vSwitch", ".", "external_ids:ovn-encap-ip="+address)}
	const script = `for n in $(seq 200); do
 [ -n "$(ovs-vsctl --timeout=30 --bare --columns=name find Interface type=geneve options:remote_ip="$0")" ] && exit 0; sleep 0.05
done; exit 1`
	for _, h := range t.spec.Hosts {
		if h.Name != t.host() {
			steps = append(steps, step{where: h.Name, argv: []string{"sh", "-c", script, address}})
		}
	}
	return append(steps, awaitOVN(t.spec))
}

// ovnControllerDo has a host's ovn-controller do something (ovn-controller(8), runtime management).
func ovnControllerDo(host string, command ...string) step {
	return step{where: host, argv: append([]string{"ovn-appctl", "-t", "ovn-controller"}, command...)}
}

// staleChassis has the host learn that the instance moved to a third one, and then hang, while the
// two others know nothing of it: they hang meanwhile, or the one with the instance would claim it back.
func staleChassis(w workshop, t target) []step {
	i, wrong := t.instance(), thirdHost(t)
	bound := func(host string) step {
		const script = `ovn-sbctl --timeout=30 set Port_Binding "$0" chassis=$(ovn-sbctl --timeout=30 --bare --columns=_uuid find Chassis name="$1")`
		return onCentral(t.spec, "sh", "-e", "-c", script, i.PortID(), host)
	}
	const sends = `for n in $(seq 200); do
 out=$(ovs-vsctl --timeout=30 --bare --columns=ofport find Interface type=geneve options:remote_ip="$1")
 ovs-ofctl dump-flows br-int | grep "reg15=$0 .*output:$out," >/dev/null && exit 0; sleep 0.05
done; exit 1`
	n := t.networkMeant()
	key := fmt.Sprintf("%#x,metadata=%#x", t.spec.PortKey(i), n.Segmentation)
	return []step{
		ovnControllerDo(t.host(), "debug/resume"),
		ovnControllerDo(i.Host, "debug/pause"), ovnControllerDo(wrong.Name, "debug/pause"),
		bound(wrong.Name),
		{where: t.host(), argv: []string{"sh", "-c", sends, key, wrong.VTEP.Addr().String()}},
		ovnControllerDo(t.host(), "debug/pause"),
		bound(i.Host),
		ovnControllerDo(i.Host, "debug/resume"), ovnControllerDo(wrong.Name, "debug/resume"),
	}
}

// freshChassis lets the host's ovn-controller go on.
func freshChassis(_ workshop, t target) []step {
	return []step{ovnControllerDo(t.host(), "debug/resume"), awaitOVN(t.spec)}
}

// thirdHost is the first that is neither the target's nor its instance's.
func thirdHost(t target) overlay.Host {
	for _, h := range t.spec.Hosts {
		if h.Name != t.host() && h.Name != t.instance().Host {
			return h
		}
	}
	return overlay.Host{}
}

const controllerPID = ovnRun + "/ovn-controller.pid"

// stopController stops the host's ovn-controller, which leaves flows and bindings as they are
// (exit --restart); that it is stopped makes no difference.
func stopController(host string) step {
	const script = `[ -e "$0" ] || exit 0; ovn-appctl -t ovn-controller exit --restart
for n in $(seq 200); do [ -e "$0" ] || exit 0; sleep 0.05; done; exit 1`
	return step{where: host, argv: []string{"sh", "-c", script, controllerPID}}
}

// startController starts it; that it runs makes no difference.
func startController(host string) step {
	return step{where: host, argv: append([]string{"sh", "-c", `[ -e "$0" ] || exec "$@"`, controllerPID}, controllerCommand()...)}
}
