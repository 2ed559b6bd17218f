package teacher

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/server"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// socketEnv makes a test binary a server with its API at that socket.
const socketEnv = "DYETRACE_TEST_TEACHER"

// patience is far more than a server takes to begin with both cores busy.
const patience = 40 * time.Second

// EVPN is the family of EVPN's routes.
var EVPN = &api.Family{Afi: api.Family_AFI_L2VPN, Safi: api.Family_SAFI_EVPN}

// Main is to be called by TestMain, before all else. In a process that Start began it is the
// server, and does not return. GoBGP has variables of its packages that servers write, so that a
// process can have but one.
func Main() {
	if socket := os.Getenv(socketEnv); socket != "" {
		server.NewBgpServer(server.LoggerOption(silence{}), server.GrpcListenAddress("unix://"+socket)).Serve()
	}
}

// silence is a log that nobody reads.
type silence struct{}

func (silence) Panic(string, log.Fields) {}
func (silence) Fatal(string, log.Fields) {}
func (silence) Error(string, log.Fields) {}
func (silence) Warn(string, log.Fields)  {}
func (silence) Info(string, log.Fields)  {}
func (silence) Debug(string, log.Fields) {}
func (silence) SetLevel(log.LogLevel)    {}
func (silence) GetLevel() log.LogLevel   { return log.ErrorLevel }

// Teacher is a server, and its API.
type Teacher struct {
	api.GobgpApiClient
	// Addr and Port are where it listens.
	Addr string
	Port int
	t    testing.TB
}

// Start returns a teacher, which ends with the test. Port 0 is a free one.
func Start(t testing.TB, addr string, port int, id string, as uint32) *Teacher {
	t.Helper()
	if port == 0 {
		port = free(t, addr)
	}
	dir, err := os.MkdirTemp("", "teacher") // a unix socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "api")
	cmd := exec.Command("/proc/self/exe")
	// Without Multipath TCP, on whose listeners GoBGP cannot set keys.
	cmd.Env = append(os.Environ(), socketEnv+"="+socket, "GODEBUG=multipathtcp=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	c, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	g := &Teacher{api.NewGobgpApiClient(c), addr, port, t}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err = g.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: as, RouterId: id, ListenPort: int32(port), ListenAddresses: []string{addr},
	}}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// free returns a port of an address that nobody listens on, and keeps it from who wants any port until the test
// ends. Its socket is none that listens, and has SO_REUSEADDR as the teacher's has: so nobody is in the teacher's
// way, not even a child of this process that has this socket between fork(2) and execve(2).
func free(t testing.TB, addr string) int {
	t.Helper()
	ip := netip.MustParseAddr(addr)
	family, at := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: ip.As16()})
	if ip.Is4() {
		family, at = unix.AF_INET, &unix.SockaddrInet4{Addr: ip.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, at)); err != nil {
		t.Fatal(err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch bound := bound.(type) {
	case *unix.SockaddrInet4:
		return bound.Port
	case *unix.SockaddrInet6:
		return bound.Port
	}
	t.Fatalf("%T is no address", bound)
	return 0
}

// Peer adds a peer of EVPN; change may be nil.
func (g *Teacher) Peer(addr string, as uint32, change func(*api.Peer)) {
	g.t.Helper()
	p := &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: addr, PeerAsn: as},
		Transport: &api.Transport{LocalAddress: g.Addr, RemotePort: uint32(g.Port)},
		Timers:    &api.Timers{Config: &api.TimersConfig{ConnectRetry: 1, IdleHoldTimeAfterReset: 1}},
		AfiSafis:  []*api.AfiSafi{{Config: &api.AfiSafiConfig{Family: EVPN, Enabled: true}}},
	}
	if change != nil {
		change(p)
	}
	if _, err := g.AddPeer(context.Background(), &api.AddPeerRequest{Peer: p}); err != nil {
		g.t.Fatal(err)
	}
}

// Listens is for Peer: the peer is waited for, and told when it was told all (RFC 4724).
func Listens(p *api.Peer) {
	p.Transport.PassiveMode = true
	p.GracefulRestart = &api.GracefulRestart{Enabled: true, RestartTime: 30}
	p.AfiSafis[0].MpGracefulRestart = &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}}
}

// MAC is a type-2 route in VXLAN.
type MAC struct {
	RD       string // an IPv4 address
	VNI      uint32
	MAC, IP  string // IP may be empty
	NextHop  string
	Sequence uint32
	ESI      [9]byte // an Ethernet segment's identifier, of type 0, without the type; zero: none
	L3VNI    uint32  // the VNI of the IP network, in the second label; 0: none
}

// Prefix is a type-5 route that goes by a gateway's address (RFC 9136, 3.2).
type Prefix struct {
	RD      string // an IPv4 address
	VNI     uint32 // of the IP network
	Prefix  netip.Prefix
	Gateway netip.Addr
	NextHop string
}

// Path returns the route as GoBGP has it.
func (p Prefix) Path(t testing.TB) *api.Path {
	t.Helper()
	return path(t, &api.EVPNIPPrefixRoute{
		Rd:  Pack(t, &api.RouteDistinguisherIPAddress{Admin: p.RD, Assigned: 500}),
		Esi: &api.EthernetSegmentIdentifier{Value: make([]byte, 9)}, IpPrefix: p.Prefix.Addr().String(), IpPrefixLen: uint32(p.Prefix.Bits()),
		GwAddress: p.Gateway.String(), Label: p.VNI,
	}, p.NextHop, []*anypb.Any{target(t, p.VNI), Pack(t, &api.EncapExtended{TunnelType: 8})})
}

// Segment is a type-1 route: a switch is on an Ethernet segment, as a whole or in the network VNI.
type Segment struct {
	RD      string // an IPv4 address
	ESI     [9]byte
	VNI     uint32
	NextHop string
	Whole   bool
}

// Path returns the route as GoBGP has it.
func (s Segment) Path(t testing.TB) *api.Path {
	t.Helper()
	nlri := &api.EVPNEthernetAutoDiscoveryRoute{
		Rd:  Pack(t, &api.RouteDistinguisherIPAddress{Admin: s.RD, Assigned: 100}),
		Esi: &api.EthernetSegmentIdentifier{Value: s.ESI[:]}, Label: s.VNI,
	}
	communities := []*anypb.Any{target(t, s.VNI), Pack(t, &api.EncapExtended{TunnelType: 8})}
	if s.Whole {
		nlri.EthernetTag, nlri.Label = 1<<32-1, 0
		communities = append(communities, Pack(t, &api.ESILabelExtended{}))
	}
	return path(t, nlri, s.NextHop, communities)
}

func target(t testing.TB, n uint32) *anypb.Any {
	return Pack(t, &api.TwoOctetAsSpecificExtended{IsTransitive: true, SubType: 2, Asn: 64512, LocalAdmin: n})
}

func path(t testing.TB, nlri proto.Message, nextHop string, communities []*anypb.Any) *api.Path {
	t.Helper()
	return &api.Path{
		Family: EVPN, Nlri: Pack(t, nlri),
		Pattrs: []*anypb.Any{
			Pack(t, &api.OriginAttribute{}),
			Pack(t, &api.NextHopAttribute{NextHop: nextHop}),
			Pack(t, &api.ExtendedCommunitiesAttribute{Communities: communities}),
		},
	}
}

// Path returns the route as GoBGP has it.
func (m MAC) Path(t testing.TB) *api.Path {
	t.Helper()
	communities := []*anypb.Any{target(t, m.VNI), Pack(t, &api.EncapExtended{TunnelType: 8})}
	if m.Sequence > 0 {
		communities = append(communities, Pack(t, &api.MacMobilityExtended{SequenceNum: m.Sequence}))
	}
	labels := []uint32{m.VNI}
	if m.L3VNI > 0 {
		labels = append(labels, m.L3VNI)
		communities = append(communities, target(t, m.L3VNI))
	}
	return path(t, &api.EVPNMACIPAdvertisementRoute{
		Rd:  Pack(t, &api.RouteDistinguisherIPAddress{Admin: m.RD, Assigned: 100}),
		Esi: &api.EthernetSegmentIdentifier{Value: m.ESI[:]}, MacAddress: m.MAC, IpAddress: m.IP, Labels: labels,
	}, m.NextHop, communities)
}

// Tell adds a route, or changes what is said of it.
func (g *Teacher) Tell(p *api.Path) {
	g.t.Helper()
	if _, err := g.AddPath(context.Background(), &api.AddPathRequest{TableType: api.TableType_GLOBAL, Path: p}); err != nil {
		g.t.Fatal(err)
	}
}

// Withdraw takes a route back.
func (g *Teacher) Withdraw(p *api.Path) {
	g.t.Helper()
	if _, err := g.DeletePath(context.Background(), &api.DeletePathRequest{TableType: api.TableType_GLOBAL, Family: p.Family, Path: p}); err != nil {
		g.t.Fatal(err)
	}
}

// Pack wraps a message.
func Pack(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
