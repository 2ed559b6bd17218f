package leak

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// patience is how long goroutines may take to end after the last test: those of net/http end
// after the connection that they served.
const patience = 5 * time.Second

// Main runs the tests, and exits with 1 if they fail or a goroutine of this module is left.
func Main(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if left := wait(); left != "" {
			fmt.Fprintf(os.Stderr, "goroutines outlive the tests:\n\n%s\n", left)
			code = 1
		}
	}
	os.Exit(code)
}

func wait() (left string) {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if left = ours(); left == "" || time.Now().After(deadline) {
			return left
		}
	}
}

// ours returns the stacks of goroutines of this module, but for the one that asks.
func ours() string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	for i, stack := range strings.Split(string(buf), "\n\n") {
		if i > 0 && strings.Contains(stack, "github.com/dyetrace/dyetrace") {
			left = append(left, stack)
		}
	}
	return strings.Join(left, "\n\n")
}
