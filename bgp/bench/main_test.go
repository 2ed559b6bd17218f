package bench

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/dyetrace/dyetrace/internal/sandbox"
)

var full = flag.Bool("full", false, "measure with 100k and 1M routes, as `make bench-evpn` does; takes minutes")

var churns = flag.Int("churns", 10, "how often all is withdrawn and learned again; below 10, whether memory grows is not judged")

// learnerEnv makes this binary the learner, so that its memory is that of nothing else.
const learnerEnv = "DYETRACE_BENCH_LEARNER"

func TestMain(m *testing.M) {
	if peers := os.Getenv(learnerEnv); peers != "" {
		if err := learn(peers); err != nil {
			fmt.Fprintln(os.Stderr, "learner:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(sandbox.Run(m))
}

var furnished sync.Once

// furnish adds to the sandbox what the tests here share.
func furnish(t *testing.T) {
	t.Helper()
	furnished.Do(func() {
		// Each address of a prefix on lo is local (ip-address(8)). Router IDs may be no loopback ones.
		sandbox.Command(t, "ip", "address", "add", "10.99.0.0/16", "dev", "lo")
		// FRR logs crashes there, by process numbers that differ outside.
		sandbox.Command(t, "mount", "-t", "tmpfs", "tmpfs", "/var/tmp")
	})
}
