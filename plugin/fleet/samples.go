package fleet

import dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"

// checkSamples returns which column is wrong, as a metric's label; empty if none is. total is the
// bound on indexes.
func checkSamples(m *dyetracev1.Samples, total uint32) string {
	n := len(m.GetIndex())
	if n == 0 {
		return "columns"
	}
	for _, l := range [...]int{
		len(m.GetBridge()), len(m.GetKind()), len(m.GetAtNs()), len(m.GetAddrTag()), len(m.GetTtl()),
		len(m.GetInPort()), len(m.GetTunSrc()), len(m.GetTunId()), len(m.GetReply()),
		len(m.GetNoReply()), len(m.GetScheme()),
	} {
		if l != n {
			return "columns"
		}
	}
	if l := len(m.GetTcpFlags()); l != n && l != 0 { // agents from before there was this column
		return "columns"
	}
	for _, i := range m.GetIndex() {
		if i >= total {
			return "index"
		}
	}
	for _, b := range m.GetBridge() {
		if int64(b) >= int64(len(m.GetBridges())) {
			return "bridge"
		}
	}
	for _, k := range m.GetKind() {
		if _, known := dyetracev1.PointKind_name[int32(k)]; !known || k == dyetracev1.PointKind_POINT_KIND_UNSPECIFIED {
			return "kind"
		}
	}
	for _, s := range m.GetScheme() {
		if _, known := dyetracev1.Scheme_name[int32(s)]; !known || s == dyetracev1.Scheme_SCHEME_UNSPECIFIED {
			return "scheme"
		}
	}
	return ""
}

func checkInjected(m *dyetracev1.Injected, total uint32) bool {
	if len(m.GetIndex()) != len(m.GetAtNs()) {
		return false
	}
	for _, i := range m.GetIndex() {
		if i >= total {
			return false
		}
	}
	for _, f := range m.GetFailures() {
		if f.GetIndex() >= total {
			return false
		}
	}
	return true
}
