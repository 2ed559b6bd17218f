package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// deafen is a role: all that comes in by these devices is lost before anybody sees it, until stdin
// ends. What a security agent's XDP program may do to a dye port.
func deafen(devices []string) (err error) {
	const drop = 1 // XDP_DROP of linux/bpf.h
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, drop), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer prog.Close()
	for _, name := range devices {
		dev, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: dev.Index, Flags: link.XDPGenericMode})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer func() { err = errors.Join(err, l.Close()) }()
	}
	fmt.Println("deaf")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// TestLostSamples: copies that get lost between a switch and its agent, where no queue or ring of
// ours knows, are a fault of ours: the hook's counters tell, so that their absence makes a verdict
// unknown, and not one on a guest that did answer, or on a network that did deliver.
func TestLostSamples(t *testing.T) {
	t.Parallel()
	l := up(t)
	l.check(0, "blue-1", "blue-3")
	l.must("lab", "break", "drop-flow", "blue-3:blue-1") // blue-3 answers; its br-int drops that
	before := l.check(1, "blue-1", "blue-3")
	if before.Verdict != "faulty" {
		t.Fatalf("the answer is dropped, and the verdict is %v", before.Pairs)
	}
	hear := l.tool("hv3", "deaf", "deafen", "dye-br-int")
	c := l.check(3, "blue-1", "blue-3")
	if c.Verdict != "unknown" || !strings.Contains(fmt.Sprint(c.Pairs), "never came to the agent") {
		t.Errorf("no sample of blue-3's answer came to the agent of hv3, and the verdict is %+v", c)
	}
	l.must("lab", "heal", "all")
	// What was seen needs no proof by absence.
	l.check(0, "blue-1", "blue-3")
	hear()
	l.check(0, "blue-1", "blue-3")
	if out := l.must("hosts", "-o", "json"); !strings.Contains(out, `"unread"`) {
		t.Errorf("hosts do not tell of copies that were never read:\n%s", out)
	}
}
