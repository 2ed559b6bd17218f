package bgp

import (
	"os"
	"testing"

	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/dyetrace/dyetrace/internal/sandbox"
)

// gobgpEnv makes this binary a GoBGP server with its API at that address. GoBGP has variables of its
// packages that servers write, so a process can have but one.
const gobgpEnv = "DYETRACE_TEST_GOBGP"

func TestMain(m *testing.M) {
	if addr := os.Getenv(gobgpEnv); addr != "" {
		server.NewBgpServer(server.LoggerOption(silence{}), server.GrpcListenAddress(addr)).Serve()
	}
	os.Exit(sandbox.Run(m))
}
