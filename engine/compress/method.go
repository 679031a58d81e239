package compress

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Method names a compression method as WALG_COMPRESSION_METHOD does. The zero
// value is no method; use None to leave the bytes as they are.
type Method string

// The methods of this build. Each value is the setting's word.
const (
	LZ4  Method = "lz4"
	Zstd Method = "zstd"
	None Method = "none"
)

// ErrCorrupt marks input that is no valid stream of the method: cut short,
// altered, or of another format. Reading again will not help.
var ErrCorrupt = errors.New("compressed data is damaged")

// codec is what the package knows of one method; a new method is one more
// entry in codecs.
type codec struct {
	method    Method
	extension string
	levels    bool // Options.Level has a meaning
	writer    func(io.Writer, Options) (Writer, error)
	reader    func(r io.Reader, workers int) (io.ReadCloser, error)
}

func codecs() []codec {
	return []codec{
		{LZ4, "lz4", false, newLZ4Writer, newLZ4Reader},
		{Zstd, "zst", true, newZstdWriter, newZstdReader},
		{None, "", false, newPlainWriter, newPlainReader},
	}
}

func (m Method) codec() (codec, error) {
	for _, c := range codecs() {
		if c.method == m {
			return c, nil
		}
	}
	return codec{}, fmt.Errorf("unknown compression method %q (this build has %s)", string(m), methodList())
}

func methodList() string {
	var names []string
	for _, c := range codecs() {
		names = append(names, string(c.method))
	}
	return strings.Join(names, ", ")
}

// ParseMethod reads a method's name; the error lists the methods of this
// build. Names are lower case, as in WAL-G.
func ParseMethod(s string) (Method, error) {
	c, err := Method(s).codec()
	return c.method, err
}

// Extension is the suffix of an object's name without the dot ("lz4", "zst");
// empty for None and for an unknown method.
func (m Method) Extension() string {
	c, _ := m.codec()
	return c.extension
}

// ByExtension finds the method that an object's last extension (without the
// dot) tells; the empty extension is None.
func ByExtension(ext string) (Method, error) {
	for _, c := range codecs() {
		if c.extension == ext {
			return c.method, nil
		}
	}
	return "", fmt.Errorf("no compression method for the extension %q (this build reads %s)", ext, strings.Join(Extensions(), ", "))
}

// Extensions lists the extensions this build reads, LZ4's first, without the
// empty one of None. A reader that has to guess an object's name tries them
// in this order.
func Extensions() []string {
	var exts []string
	for _, c := range codecs() {
		exts = append(exts, c.extension)
	}
	return slices.DeleteFunc(exts, func(e string) bool { return e == "" })
}
