package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// PatienceEnv names the environment variable that says how many times as long as usual a lab waits for
// things to happen before it gives up: for machines much slower than those on which the waits were
// measured, such as one that is emulated.
const PatienceEnv = "DYETRACE_LAB_PATIENCE"

// patience is what PatienceEnv says; 1 where it says nothing that can be.
var patience = func() float64 {
	if factor, err := strconv.ParseFloat(os.Getenv(PatienceEnv), 64); err == nil && factor >= 1 && factor <= 1000 {
		return factor
	}
	return 1
}()

// Patience returns how long to wait where d is enough on an ordinary machine.
func Patience(d time.Duration) time.Duration { return time.Duration(float64(d) * patience) }

// DatapathEnv names the environment variable that says what hypervisors forward by where Options do not.
const DatapathEnv = "DYETRACE_LAB_DATAPATH"

// Datapaths returns what Options.Datapath can be, the default first.
func Datapaths() []string { return []string{overlay.Netdev, overlay.System} }

// datapathOf returns the datapath that is asked for or, where none is, the topology's.
func datapathOf(name, topology string) (string, error) {
	if name == "" {
		name = os.Getenv(DatapathEnv)
	}
	switch {
	case name == "":
		return topology, nil
	case topology != "" && name != topology:
		return "", fmt.Errorf("lab: datapath %s: the topology wants %s", name, topology)
	}
	switch name {
	case overlay.Netdev:
		return name, nil
	case overlay.System:
		// The module's generic netlink family (ovs net/openvswitch/datapath.c), which is there when it is built in, too.
		if _, err := netlink.GenlFamilyGet("ovs_datapath"); err != nil {
			return "", fmt.Errorf("lab: datapath %s: this kernel has no Open vSwitch (%w); 'modprobe openvswitch' if it comes as a module", name, err)
		}
		return name, nil
	}
	return "", fmt.Errorf("lab: datapath %q: want %s or %s", name, overlay.Netdev, overlay.System)
}

// writeDatapath has the lab's overlay file, where it does not yet, say by what hypervisors forward.
func (l *Lab) writeDatapath(topology string) error {
	if l.base.Datapath == topology {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(l.dir, "topology", "overlay.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(f, "\ndatapath: %s\n", l.base.Datapath); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
