package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMTUOfGeneve has the spine of a lab with OVN drop what is large of what one rack sends the other: Geneve's
// packets, and what agents send to try that. All pairs between the racks are told, and no other.
func TestMTUOfGeneve(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "ovn")
	l.check(0, "--all", "--mtu")
	l.node("spine1", "nft", "add table ip narrow; add chain ip narrow c { type filter hook forward priority 0; }; "+
		"add rule ip narrow c ip saddr 10.255.2.0/24 ip length > 1400 drop")
	l.check(0, "--all") // small packets pass
	told := 0
	for _, p := range l.check(1, "--all", "--mtu").Pairs {
		hosts := []string{}
		for _, s := range p.Samples {
			if !slices.Contains(hosts, s.Host) {
				hosts = append(hosts, s.Host)
			}
		}
		crosses := slices.Contains(hosts, "hv3") && len(hosts) > 1
		switch {
		case !crosses && p.Verdict != "healthy":
			t.Errorf("%v, by %v: large packets of this pair pass", p, hosts)
		case crosses && (p.Verdict != "faulty" || p.CauseKind != "path-mtu" || p.Host != "hv3" || !strings.Contains(p.Cause, "up to 1400 bytes pass")):
			t.Errorf("%v, by %v: want its path MTU, 1400 bytes, from hv3", p, hosts)
		case crosses:
			told++
		}
	}
	if told == 0 {
		t.Error("no pair crosses the racks")
	}
	l.node("spine1", "nft", "delete", "table", "ip", "narrow")
	l.check(0, "--all", "--mtu")
}

// TestMTUOfOVN has the underlay of a lab with OVN pass all but the largest packets that its guests send: with OVN's
// option, they are 8 bytes larger than Geneve makes them by itself.
func TestMTUOfOVN(t *testing.T) {
	t.Parallel()
	const mtu = 1442                        // of the guests
	const outer = mtu + 14 + 8 + 8 + 8 + 20 // Ethernet, UDP, Geneve, option, IPv4
	l := up(t, "--topology", "ovn")
	ping := func() result {
		return l.dyetrace("lab", "exec", "front-1", "--", "ping", "-c", "1", "-i", "0.2", "-w", "5", "-M", "do", "-s", fmt.Sprint(mtu-28), "10.0.1.14")
	}
	for _, tt := range []struct{ pass, code int }{{outer, 0}, {outer - 1, 1}} {
		l.node("spine1", "nft", fmt.Sprintf("add table ip narrow; add chain ip narrow c { type filter hook forward priority 0; }; "+
			"add rule ip narrow c ip length > %d drop", tt.pass))
		if r := ping(); (r.code == 0) != (tt.code == 0) {
			t.Errorf("where %d bytes pass, pings of %d bytes: %s%s", tt.pass, mtu, r.stdout, r.stderr)
		}
		for _, p := range l.check(tt.code, "front-1", "front-4", "--mtu").Pairs {
			if tt.code != 0 && (p.CauseKind != "path-mtu" || !strings.Contains(p.Cause, fmt.Sprintf("packets of %d bytes", outer))) {
				t.Errorf("%v (want its path MTU)", p)
			}
		}
		l.node("spine1", "nft", "delete", "table", "ip", "narrow")
	}
}

// TestMTUOverIPv6 has the tunnels of a lab go over IPv6, which takes 20 bytes more of each packet, and the spine drop
// what is large, one way without a word, then the other way with that of a router (Packet Too Big, RFC 4443).
func TestMTUOverIPv6(t *testing.T) {
	t.Parallel()
	if datapath() == "system" {
		t.Skip("the kernel's datapath has GRE over IPv6 by ports of another type only (ip6gre)")
	}
	l := up(t, "--topology", "six")
	l.tunnelOverIPv6()
	eventually(t, "agents answer at their addresses of IPv6", 30*time.Second, func() bool {
		r := l.dyetrace("underlay", "hv1", "hv2")
		return r.code == 0 && strings.Contains(r.stdout, "UDP from fd00:ff:11::11 to fd00:ff:12::12") && strings.Contains(r.stdout, "of 1520 bytes too")
	})
	l.check(0, "--all", "--mtu")
	narrow := func(host, cause string) {
		t.Helper()
		l.check(0, "--all") // small packets pass
		crossing := 0
		for _, p := range l.check(1, "--all", "--mtu").Pairs {
			hosts := map[string]bool{}
			for _, s := range p.Samples {
				hosts[s.Host] = true
			}
			switch crosses := len(hosts) > 1; {
			case !crosses && p.Verdict != "healthy":
				t.Errorf("%v, on %v: large packets of this pair pass", p, hosts)
			case crosses && (p.Verdict != "faulty" || p.CauseKind != "path-mtu" || p.Host != host || !strings.Contains(p.Cause, cause)):
				t.Errorf("%v (want its path MTU, from %s: %s)", p, host, cause)
			case crosses:
				crossing++
			}
		}
		if crossing == 0 {
			t.Error("no pair has instances on both hosts")
		}
	}
	l.node("spine1", "nft", "add table ip6 narrow; add chain ip6 narrow c { type filter hook forward priority 0; }; "+
		"add rule ip6 narrow c ip6 saddr fd00:ff:12::/64 meta length > 1400 drop")
	narrow("hv2", "from fd00:ff:12::12 to fd00:ff:11::11 are lost, while up to 1400 bytes pass")
	l.node("spine1", "nft", "delete", "table", "ip6", "narrow")
	l.check(0, "--all", "--mtu")
	l.node("spine1", "ip", "-6", "route", "replace", "fd00:ff:12::/64", "via", "fd00:ff:0:2::2", "mtu", "1400")
	narrow("hv1", "up to 1400 bytes pass; fd00:ff:0:1::1 says: packet too big, at most 1400 bytes")
	tryUnderlay(t, l, "hv1", "hv2") // that nothing on a host keeps packets out is known where it was seen of late
	l.node("spine1", "ip", "-6", "route", "del", "fd00:ff:11::/64")
	for _, p := range l.check(1, "--all").Pairs {
		if p.Verdict != "healthy" && (p.CauseKind != "underlay" || !strings.Contains(p.Cause, "by UDP from fd00:ff:")) {
			t.Errorf("%v (want the underlay, by what UDP over IPv6 tells)", p)
		}
	}
}

// tunnelOverIPv6 gives the underlay of the lab with two hosts addresses and routes of IPv6, room for what the larger header
// takes of packets, and has the tunnels go by these. Neighbours of br-phy are told to the switch, as the lab does for IPv4.
func (l *lab) tunnelOverIPv6() {
	router := "sysctl -q -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.all.forwarding=1\n"
	spine := router
	for n := 1; n <= 2; n++ {
		far := 3 - n
		spine += fmt.Sprintf("ip link set eth%[1]d mtu 1600\nip addr add fe80::1/64 dev eth%[1]d nodad\nip addr add fd00:ff:0:%[1]d::1/64 dev eth%[1]d nodad\n"+
			"ip route add fd00:ff:1%[1]d::/64 via fd00:ff:0:%[1]d::2\n", n)
		l.node(fmt.Sprintf("leaf%d", n), "sh", "-e", "-c", router+fmt.Sprintf(`for d in eth1 eth2 rack; do ip link set $d mtu 1600; done
ip addr add fe80::2/64 dev eth1 nodad
ip addr add fd00:ff:0:%[1]d::2/64 dev eth1 nodad
ip addr add fe80::1/64 dev rack nodad
ip addr add fd00:ff:1%[1]d::1/64 dev rack nodad
ip route add fd00:ff::/32 via fd00:ff:0:%[1]d::1`, n))
		l.node(fmt.Sprintf("hv%d", n), "sh", "-e", "-c", fmt.Sprintf(`ip link set eth1 mtu 1600
ovs-vsctl set interface br-phy mtu_request=1600
sysctl -q -w net.ipv6.conf.br-phy.disable_ipv6=0
ip addr add fe80::3/64 dev br-phy nodad
ip addr add fd00:ff:1%[1]d::1%[1]d/64 dev br-phy nodad
ip route add fd00:ff::/32 via fd00:ff:1%[1]d::1
mac=$(ovs-appctl tnl/neigh/show | awk '$3 == "br-phy" {print $2; exit}')
for a in fd00:ff:1%[1]d::1 fd00:ff:1%[2]d::1%[2]d; do ovs-appctl tnl/neigh/set br-phy $a $mac; done
for p in $(ovs-vsctl list-ports br-tun | grep -E '^(gre|vxlan)-'); do
	ovs-vsctl set interface $p options:local_ip=fd00:ff:1%[1]d::1%[1]d options:remote_ip=fd00:ff:1%[2]d::1%[2]d
done`, n, far))
	}
	l.node("spine1", "sh", "-e", "-c", spine)
}

// TestMTUByTunnel has the racks' leaf drop what is large of what one host sends another, where two tunnels join these: what
// is too large by VXLAN only, then what bears VXLAN's ToS, then all, where GRE's packets may be fragmented. Each time the
// pairs whose packets are in VXLAN are told, as a ping of that size by their guests shows, and those in GRE are not.
func TestMTUByTunnel(t *testing.T) {
	t.Parallel()
	const gre, vxlan = "gre-0aff020d", "vxlan-0aff020d" // to hv3
	l := up(t, "--topology", "racks")
	drop := func(what string) {
		l.node("leaf1", "nft", "add table ip narrow; add chain ip narrow c { type filter hook forward priority 0; }; flush chain ip narrow c; "+
			"add rule ip narrow c ip saddr 10.255.1.11 ip daddr 10.255.2.13 "+what+" drop")
	}
	set := func(port, option string) { l.node("hv1", "ovs-vsctl", "set", "Interface", port, "options:"+option) }
	ping := func(from, to string) bool {
		return l.dyetrace("lab", "exec", from, "--", "ping", "-c", "1", "-i", "0.2", "-w", "5", "-M", "do", "-s", "1422", to).code == 0
	}
	told := func(what string) {
		t.Helper()
		if !ping("blue-1", "10.0.1.13") || ping("green-1", "10.0.2.13") {
			t.Errorf("%s: large pings by GRE pass: %t, by VXLAN: %t; want the former only", what, ping("blue-1", "10.0.1.13"), ping("green-1", "10.0.2.13"))
		}
		by := map[bool]int{}
		for _, p := range l.check(1, "--all", "--mtu").Pairs {
			src, dst := p.Samples[0].Host, p.Samples[0].Host
			for _, s := range p.Samples {
				if s.Direction == "forward" {
					dst = s.Host
				}
			}
			// Packets are in the tunnel of the network that they go to.
			there, back := src == "hv1" && dst == "hv3", src == "hv3" && dst == "hv1"
			narrow := there && p.DstNetwork != "blue" || back && p.SrcNetwork != "blue"
			switch {
			case narrow && (p.CauseKind != "path-mtu" || p.Host != "hv1" || !strings.Contains(p.Cause, "packets of 1500 bytes from 10.255.1.11 to 10.255.2.13 are lost")):
				t.Errorf("%s: %v, from %s to %s (want its path MTU)", what, p, src, dst)
			case !narrow && p.Verdict != "healthy":
				t.Errorf("%s: %v, from %s to %s (its large packets pass)", what, p, src, dst)
			}
			if there || back {
				by[narrow]++
			}
		}
		if by[true] == 0 || by[false] == 0 {
			t.Errorf("%s: %d pairs are in VXLAN and %d in GRE, want some of both", what, by[true], by[false])
		}
	}
	l.check(0, "--all", "--mtu")
	drop("ip length > 1495")
	told("what is too large by VXLAN only")

	set(gre, "tos=0x20")
	set(vxlan, "tos=0x48")
	for port, tos := range map[string]string{gre: "ToS 32", vxlan: "ToS 72"} {
		eventually(t, "agents know "+port, time.Minute, func() bool {
			r := l.dyetrace("underlay", "hv1", "hv3", "--tunnel", port)
			return strings.Contains(r.stdout, tos)
		})
	}
	drop("ip dscp 0x12 ip length > 1400")
	told("what bears VXLAN's ToS")

	set(gre, "df_default=false")
	drop("ip length > 1400 ip frag-off & 0x4000 != 0")
	told("what may not be fragmented")
}
