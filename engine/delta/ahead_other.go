//go:build !linux

package delta

// adviseNeed does nothing where there is no such advice.
func adviseNeed(uintptr, int64, int64) {}
