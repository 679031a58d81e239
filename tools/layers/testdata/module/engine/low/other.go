//go:build never

package low
