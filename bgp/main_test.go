package bgp

import (
	"os"
	"testing"

	"github.com/dyetrace/dyetrace/internal/sandbox"
	"github.com/dyetrace/dyetrace/internal/teacher"
)

func TestMain(m *testing.M) {
	teacher.Main()
	os.Exit(sandbox.Run(m))
}
