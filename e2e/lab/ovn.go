package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// Where OVN's daemons keep what they need (ovn-ctl(8), as Debian has it).
const (
	ovnRun = "/run/ovn"
	ovnLog = "/var/log/ovn"
	ovnDB  = "/var/lib/ovn"
)

// ovnPrograms are what the lab runs of OVN, each with its Debian package.
var ovnPrograms = [][2]string{
	{"ovn-northd", "ovn-central"}, {"ovn-nbctl", "ovn-common"}, {"ovn-sbctl", "ovn-common"}, {"ovn-controller", "ovn-host"},
}

// checkOVN looks for the programs of the topologies with OVN.
func (l *Lab) checkOVN() error {
	if l.Overlay().OVN == nil {
		return nil
	}
	for _, p := range ovnPrograms {
		if _, err := exec.LookPath(p[0]); err != nil {
			return fmt.Errorf("lab: topology %s: %s: not found; Debian package %s", l.topology.Name, p[0], p[1])
		}
	}
	return nil
}

// detached are the arguments by which a daemon of OVN's runs in the background, started anew if it crashes, as
// ovn-ctl(8) has it: one start of ovn-controller 23.03.1 in a hundred or so ends by a segmentation fault as soon
// as it has reached the switch (seen).
func detached(program, name string) []string {
	return []string{program, "--detach", "--monitor", "--no-chdir", "--pidfile=" + ovnRun + "/" + name + ".pid",
		"--log-file=" + ovnLog + "/" + name + ".log", "-vconsole:off"}
}

// ovnCentral is the node with OVN's databases.
type ovnCentral struct{ spec *overlay.Spec }

func (c ovnCentral) steps() []setUpStep {
	return []setUpStep{{"databases", c.startDatabases}, {"logical network", c.describe}, {"ovn-northd", c.startNorthd}}
}

// northbound and southbound are the sockets of both databases.
const (
	northbound = "unix:" + ovnRun + "/ovnnb_db.sock"
	southbound = "unix:" + ovnRun + "/ovnsb_db.sock"
)

func (c ovnCentral) startDatabases(ctx context.Context) error {
	if err := run(ctx, nil, "mkdir", "-p", ovnRun); err != nil {
		return err
	}
	for _, db := range []struct{ name, schema string }{{"ovnnb_db", "ovn-nb"}, {"ovnsb_db", "ovn-sb"}} {
		file := ovnDB + "/" + db.name + ".db"
		server := append(detached("ovsdb-server", db.name), "--unixctl="+ovnRun+"/"+db.name+".ctl", "--remote=punix:"+ovnRun+"/"+db.name+".sock")
		if db.name == "ovnsb_db" {
			server = append(server, fmt.Sprintf("--remote=ptcp:%d:%s", c.spec.OVN.SouthboundAddress().Port(), c.spec.OVN.Address))
		}
		err := runAll(ctx, [][]string{
			{"ovsdb-tool", "create", file, "/usr/share/ovn/" + db.schema + ".ovsschema"},
			append(server, file),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// describe says in one transaction what the overlay is.
func (c ovnCentral) describe(ctx context.Context) error {
	return run(ctx, nil, "ovn-nbctl", commands(c.spec.Northbound())...)
}

// commands are arguments by which ovn-nbctl, or one like it, does several things in one transaction.
func commands(list [][]string) []string {
	args := []string{"--timeout=30"}
	for _, c := range list {
		args = append(append(args, "--"), c...)
	}
	return args
}

// startNorthd returns when the southbound database has what the northbound says.
func (c ovnCentral) startNorthd(ctx context.Context) error {
	return runAll(ctx, [][]string{
		append(detached("ovn-northd", "ovn-northd"), "--ovnnb-db="+northbound, "--ovnsb-db="+southbound),
		{"ovn-nbctl", "--timeout=30", "--wait=sb", "sync"},
	})
}

// ovnControl has the overlay in place by ovn-controller.
type ovnControl struct{ hypervisor }

// plug makes br-int with the taps, as Nova leaves them to OVN, and says where OVN's central node is.
func (c ovnControl) plug(tx *transaction) {
	tx.bridge(overlay.Integration, c.datapath())
	for _, i := range c.spec.On(c.host.Name) {
		tx.tap(i, 0)
	}
	tx.add("set", "Open_vSwitch", ".", "external_ids:ovn-remote="+quote(c.spec.OVN.Southbound()),
		"external_ids:ovn-encap-type="+overlay.Geneve, "external_ids:ovn-encap-ip="+c.host.VTEP.Addr().String(),
		"external_ids:ovn-bridge-datapath-type="+c.spec.DatapathType())
}

// controllerCommand starts ovn-controller on a hypervisor.
func controllerCommand() []string { return detached("ovn-controller", "ovn-controller") }

// program starts ovn-controller and returns when the flows of all instances here are there; those to
// other hosts come as their controllers do.
func (c ovnControl) program(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, gatewayWait)
	defer cancel()
	// It would try by itself, but only once a second, and then more seldom.
	if err := awaitDial(ctx, c.spec.OVN.SouthboundAddress().String()); err != nil {
		return err
	}
	if !c.spec.InKernel() {
		if err := withoutNAT(ctx); err != nil {
			return err
		}
	}
	if err := runAll(ctx, [][]string{{"mkdir", "-p", ovnRun}, controllerCommand()}); err != nil {
		return err
	}
	wait := []string{fmt.Sprintf("--timeout=%.0f", gatewayWait.Seconds())} // no longer than ctx
	for _, i := range c.spec.On(c.host.Name) {
		wait = append(wait, "--", "wait-until", "Interface", i.Tap(), "external_ids:ovn-installed=true")
	}
	if err := run(ctx, nil, "ovs-vsctl", wait...); err != nil {
		return fmt.Errorf("%w\n%s", err, said("ovn-controller"))
	}
	_, err := c.notePorts(ctx)
	return err
}

// said returns the last that a daemon of OVN's wrote to its log, for an error.
func said(name string) string {
	const most = 4 << 10
	text, err := os.ReadFile(ovnLog + "/" + name + ".log")
	if err != nil {
		return fmt.Sprintf("log of %s: %v", name, err)
	}
	return fmt.Sprintf("log of %s, its end:\n%s", name, text[max(0, len(text)-most):])
}

// withoutNAT has the switch say that it cannot translate to no address, by which OVN otherwise avoids
// that two connections have the same ports (ct_zero_snat of ovs-vswitchd.conf.db(5)). It can; but
// where a TCP connection through such a translation is closed and one with the same addresses and
// ports follows, the userspace datapath of Open vSwitch 3.1.0 aborts: "conntrack.c:1063: assertion
// conn->conn_type == CT_CONN_TYPE_DEFAULT failed" (seen, by two connects from one guest's port). The
// switch says what it can once, when the row is new.
func withoutNAT(ctx context.Context) error {
	if err := run(ctx, nil, "ovs-vsctl", "--timeout=30", "--id=@new", "create", "Datapath", "datapath_version=0",
		"--", "set", "Open_vSwitch", ".", "datapaths:netdev=@new"); err != nil {
		return err
	}
	id, err := output(ctx, nil, "ovs-vsctl", "--timeout=30", "get", "Open_vSwitch", ".", "datapaths:netdev")
	if err != nil {
		return err
	}
	row := strings.TrimSpace(string(id))
	return run(ctx, nil, "ovs-vsctl", "--timeout=30", "wait-until", "Datapath", row, "capabilities:ct_zero_snat=true",
		"--", "set", "Datapath", row, "capabilities:ct_zero_snat=false")
}

// awaitDial returns when somebody listens.
func awaitDial(ctx context.Context, address string) error {
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("OVN's southbound database does not answer: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
