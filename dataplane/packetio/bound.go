package packetio

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// Bound tells whether a packet socket of any process is bound to the device of that name, in the network namespace of the
// calling thread. To one that is not there none is.
func Bound(name string) (bool, error) {
	link, err := netlink.LinkByName(name)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("device %s: %w", name, err)
	}
	f, err := os.Open("/proc/thread-self/net/packet")
	if err != nil {
		return false, fmt.Errorf("device %s: who reads it: %w", name, err)
	}
	defer f.Close()
	// sk RefCnt Type Proto Iface R Rmem User Inode, below such a head (packet_seq_show of net/packet/af_packet.c).
	const iface = 4
	index, lines := strconv.Itoa(link.Attrs().Index), bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > iface && fields[iface] == index {
			return true, nil
		}
	}
	return false, lines.Err()
}
