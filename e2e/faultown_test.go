package e2e

import (
	endian "encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ownFault is a fault of ours, on hv3 unless its name says otherwise, done by nothing but the tools of
// the host's operating system; or something by which no packet is lost that may look like a fault. Verdicts may
// be unknown, and never wrong.
type ownFault struct {
	name string
	do   func(l *lab)
	undo func(l *lab) // may come twice; nil is nothing
	// breaks are the pairs whose packets are lost meanwhile in truth; nil is none.
	breaks func(pair) bool
	// resumes says that the run ends, and is to be gone on with.
	resumes bool
	// ovn says that it can be had where OVN is the network controller.
	ovn bool
}

// withOVN says so of a fault.
func (f ownFault) withOVN() ownFault {
	f.ovn = true
	return f
}

func fault(name string, do, undo func(l *lab)) ownFault {
	if undo == nil {
		undo = func(*lab) {}
	}
	return ownFault{name: name, do: do, undo: undo}
}

var ownFaults = []ownFault{
	fault("all flows replaced by the controller's", replaceFlows, nil),
	fault("all flows replaced, ten times", func(l *lab) {
		for range 10 {
			replaceFlows(l)
		}
	}, nil),
	fault("agent stopped", func(l *lab) { l.stopAgent("hv3") }, func(l *lab) { l.continueAgent("hv3") }).withOVN(),
	fault("agent stopped, and continued", func(l *lab) {
		l.stopAgent("hv3")
		time.Sleep(700 * time.Millisecond) // the fault itself: shorter than a heartbeat is waited for
		l.continueAgent("hv3")
	}, nil).withOVN(),
	fault("agent starved of samples", starve, nil),
	fault("agent killed, and restarted", func(l *lab) {
		l.stop("hv3", "agent", "KILL")
		l.daemonise("hv3", "agent", l.configFile("hv3"))
	}, nil).withOVN(),
	fault("agent cut off", func(l *lab) { l.dropFromController(true) }, func(l *lab) { l.dropFromController(false) }).withOVN(),
	fault("dye port down", func(l *lab) { l.link("dye-br-int", "down") }, func(l *lab) { l.link("dye-br-int", "up") }).withOVN(),
	fault("dye port of the tunnels down", func(l *lab) { l.link("dye-br-tun", "down") }, func(l *lab) { l.link("dye-br-tun", "up") }),
	fault("dye port deleted", func(l *lab) { l.node("hv3", "ovs-vsctl", "--if-exists", "del-port", "br-int", "dye-br-int") }, nil).withOVN(),
	slowly("between racks 300 ms", func(l *lab) func() { return l.slowRacks(300 * time.Millisecond) }),
	slowly("between racks 600 ms", func(l *lab) func() { return l.slowRacks(600 * time.Millisecond) }),
	slowly("to a guest 200 ms", func(l *lab) func() { return l.slowGuest("blue-3", 200*time.Millisecond) }),
	{name: "samples lost unseen", do: deaf, undo: func(l *lab) { l.hear() }, ovn: true},
	fault("ovsdb-server restarted", restartDatabase, nil),
	{name: "ovs-vswitchd restarted", do: restartSwitch, undo: func(*lab) {}, breaks: func(p pair) bool { return onHV3[p.Src] || onHV3[p.Dst] }},
	{
		name: "controller killed, and the run resumed", resumes: true, ovn: true, do: func(l *lab) { l.stop("controller", "serve", "KILL") },
		undo: func(l *lab) {
			if l.daemon("controller", "serve") == "" {
				l.startController()
			}
		},
	},
}

// slowed end the slowness of labs, by name.
var slowed = map[string]func(){}

// slowly has packets take long: none is lost.
func slowly(where string, do func(l *lab) (stop func())) ownFault {
	return fault("slow: "+where, func(l *lab) { slowed[l.name] = do(l) }, func(l *lab) {
		if stop := slowed[l.name]; stop != nil {
			stop()
		}
	})
}

// onHV3 are the instances of the default lab that are there.
var onHV3 = map[string]bool{"blue-3": true, "green-3": true, "red-2": true}

// keepFlows has, in a shell, the flows of a host's bridges in files: the controller's, and what breaks made of them.
const keepFlows = `for b in br-int br-tun; do ovs-ofctl --no-stats --no-names dump-flows $b | grep cookie= | grep -v cookie=0x44796554 >/run/dyetrace-lab/$b.kept; done
`

func replaceFlows(l *lab) {
	l.node("hv3", "sh", "-e", "-c", keepFlows+"for b in br-int br-tun; do ovs-ofctl --bundle replace-flows $b /run/dyetrace-lab/$b.kept; done")
}

func (l *lab) link(name, state string) { l.node("hv3", "ip", "link", "set", name, state) }

// agents are the host's own pids of an agent, and of what the lab started it with.
func (l *lab) agents(host string) (pids []int) {
	l.t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		text, err := os.ReadFile(f)
		var pid int
		if _, bad := fmt.Sscanf(f, "/proc/%d/cmdline", &pid); err == nil && bad == nil && strings.HasSuffix(string(text), "\x00agent\x00--config\x00"+l.configFile(host)+"\x00") {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		l.t.Fatalf("%s: no agent runs", host)
	}
	return pids
}

func (l *lab) stopAgent(host string) {
	for _, pid := range l.agents(host) {
		_ = syscall.Kill(pid, syscall.SIGSTOP) // what is gone needs none
	}
}

// continueAgent has an agent go on. nsenter(1), by which the lab started it, stops itself when it hears
// that the agent did, and that may be after it was told to go on.
func (l *lab) continueAgent(host string) {
	l.t.Helper()
	eventually(l.t, "the agent of "+host+" goes on", 10*time.Second, func() bool {
		stopped := false
		for _, pid := range l.agents(host) {
			_ = syscall.Kill(pid, syscall.SIGCONT)
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			stopped = stopped || err == nil && strings.Contains(string(stat), ") T ")
		}
		return !stopped
	})
	// Once more: the last look may have been before it heard.
	for range 3 {
		time.Sleep(20 * time.Millisecond)
		for _, pid := range l.agents(host) {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
}

// starve stops the agent while a guest of its host sends more stained packets than the rings of the dye
// ports hold.
func starve(l *lab) {
	l.stopAgent("hv3")
	defer l.continueAgent("hv3")
	l.tool("red-2", "flooded", "flood", "10.0.1.11")()
}

// flood is a role: 60,000 stained SYNs to an address, some 10 MB of copies: more than twice a ring.
func flood(to string) error {
	conn, err := net.ListenIP("ip4:tcp", nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var errSet error
	if err := raw.Control(func(fd uintptr) { errSet = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, 0x5c) }); err != nil {
		return err
	}
	if errSet != nil {
		return errSet
	}
	syn := make([]byte, 20)
	syn[1], syn[3], syn[12], syn[13] = 11, 11, 5<<4, 2 // ports, header length, SYN; what its sum is nobody looks at
	sent := 0
	for n := range 60_000 {
		endian.BigEndian.PutUint32(syn[4:], uint32(n))
		if _, err := conn.WriteTo(syn, &net.IPAddr{IP: net.ParseIP(to)}); err == nil {
			sent++
		}
	}
	if sent == 0 {
		return errors.New("nothing could be sent")
	}
	fmt.Println("flooded")
	return nil
}

// chat is a role: some 100 small packets a second to an address, in vain, until its standard input ends.
func chat(to string) error {
	conn, err := net.Dial("udp", net.JoinHostPort(to, "9"))
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Println("chatting")
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // it ends
		close(ended)
	}()
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		select {
		case <-ended:
			return nil
		case <-tick.C:
			_, _ = conn.Write(make([]byte, 40)) // what was refused before is told here
		}
	}
}

// dropFromController has hv3 drop, or take again, what the controller sends.
func (l *lab) dropFromController(drop bool) {
	rules := "add table inet own\ndelete table inet own\n"
	if drop {
		rules += "table inet own {\n chain c {\n type filter hook input priority 0\n tcp sport 7443 drop\n }\n}\n"
	}
	l.node("hv3", "sh", "-c", "printf %s '"+rules+"' | nft -f -")
}

// hearing ends the deafness of labs, by name.
var hearing = map[string]func(){}

// deaf has all copies for br-int's dye port lost where no queue or ring of ours knows.
func deaf(l *lab) { hearing[l.name] = l.tool("hv3", "deaf", "deafen", "dye-br-int") }

func (l *lab) hear() {
	if stop := hearing[l.name]; stop != nil {
		stop()
	}
}

// restartDatabase restarts ovsdb-server as the lab started it (ovsdb-server(1)).
func restartDatabase(l *lab) {
	l.node("hv3", "sh", "-e", "-c", `pid=$(cat /run/openvswitch/ovsdb-server.pid)
kill -9 $pid
while kill -0 $pid 2>/dev/null; do sleep 0.02; done
rm -f /etc/openvswitch/.conf.db.~lock~
ovsdb-server /etc/openvswitch/conf.db --remote=punix:/run/openvswitch/db.sock --detach --no-chdir --pidfile --log-file=/var/log/openvswitch/ovsdb-server.log -vconsole:off`)
}

// restartSwitch kills ovs-vswitchd and starts it as the lab did. With it go the bridges' own ports, and
// with these the VTEP's address; the network controller's flows go, too, and it puts them back.
func restartSwitch(l *lab) {
	l.node("hv3", "sh", "-e", "-c", keepFlows+`address=$(ip -o -4 addr show br-phy | awk '{print $4}')
route=$(ip -4 route show dev br-phy | grep via | head -n 1)
neighbours=$(ovs-appctl tnl/neigh/show | awk '$3 == "br-phy" {print $1 " " $2}')
pid=$(cat /run/openvswitch/ovs-vswitchd.pid)
kill -9 $pid
while kill -0 $pid 2>/dev/null; do sleep 0.02; done
ovs-vswitchd --detach --no-chdir --pidfile --log-file=/var/log/openvswitch/ovs-vswitchd.log -vconsole:off
for n in $(seq 200); do [ -e /sys/class/net/br-phy ] && break; sleep 0.02; done
ip addr replace $address dev br-phy
ip link set br-phy up
ip route replace $route dev br-phy
ovs-appctl tnl/neigh/aging 3600
echo "$neighbours" | while read ip mac; do ovs-appctl tnl/neigh/set br-phy $ip $mac || true; done
for b in br-int br-tun; do ovs-ofctl --bundle add-flows $b /run/dyetrace-lab/$b.kept; done`)
}
