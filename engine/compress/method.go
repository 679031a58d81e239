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

// The methods. Each value is the setting's word.
const (
	LZ4    Method = "lz4"
	Zstd   Method = "zstd"
	Brotli Method = "brotli"
	LZMA   Method = "lzma"
	None   Method = "none"

	// Gzip and Bzip2 are only read; they are no words of the setting.
	Gzip  Method = "gzip"
	Bzip2 Method = "bzip2"
)

// ErrCorrupt marks input that is no valid stream of the method: cut short,
// altered, or of another format. Reading again will not help. What the methods
// cannot see is told in the package's comment.
var ErrCorrupt = errors.New("compressed data is damaged")

// codec is what the package knows of one method; a new method is one more
// entry in codecs.
type codec struct {
	method    Method
	extension string
	levels    bool                                     // Options.Level has a meaning
	writer    func(io.Writer, Options) (Writer, error) // nil: only read
	reader    func(r io.Reader, workers int) (io.ReadCloser, error)
}

func codecs() []codec {
	return []codec{
		{LZ4, "lz4", false, newLZ4Writer, newLZ4Reader},
		{Zstd, "zst", true, newZstdWriter, newZstdReader},
		{Brotli, "br", false, newBrotliWriter, newBrotliReader},
		{LZMA, "lzma", false, newLZMAWriter, newLZMAReader},
		{Gzip, "gz", false, nil, newGzipReader},
		{Bzip2, "bz2", false, nil, newBzip2Reader},
		{None, "", false, newPlainWriter, newPlainReader},
	}
}

func (m Method) codec() (codec, error) {
	for _, c := range codecs() {
		if c.method == m {
			return c, nil
		}
	}
	return codec{}, fmt.Errorf("unknown compression method %q (want %s)", string(m), writable())
}

// writing is codec for those who want to write.
func (m Method) writing() (codec, error) {
	c, err := m.codec()
	if err == nil && c.writer == nil {
		return codec{}, fmt.Errorf("compression method %q is only for reading (to write, use %s)", string(m), writable())
	}
	return c, err
}

func writable() string {
	var names []string
	for _, c := range codecs() {
		if c.writer != nil {
			names = append(names, string(c.method))
		}
	}
	return strings.Join(names, ", ")
}

// ParseMethod reads the name of a method to write with; the error lists them.
// Names are lower case, as in WAL-G.
func ParseMethod(s string) (Method, error) {
	c, err := Method(s).writing()
	return c.method, err
}

// Extension is the suffix of an object's name without the dot ("lz4", "zst");
// empty for None and for an unknown method.
func (m Method) Extension() string {
	c, _ := m.codec()
	return c.extension
}

// lzopExtension is that of the objects WAL-E wrote.
const lzopExtension = "lzo"

// ByExtension finds the method that an object's last extension (without the
// dot) tells; the empty extension is None. The method may be one that is only
// read.
func ByExtension(ext string) (Method, error) {
	for _, c := range codecs() {
		if c.extension == ext {
			return c.method, nil
		}
	}
	readable := strings.Join(Extensions(), ", ")
	if ext == lzopExtension {
		return "", fmt.Errorf("lzop compression (extension %q, of WAL-E's archives) is not supported: "+
			"unpack the object with lzop -d and store it with an extension of %s", ext, readable)
	}
	return "", fmt.Errorf("no compression method for the extension %q (want %s)", ext, readable)
}

// Extensions lists the extensions that can be read, LZ4's first, without the
// empty one of None. A reader that has to guess an object's name tries them
// in this order.
func Extensions() []string {
	var exts []string
	for _, c := range codecs() {
		exts = append(exts, c.extension)
	}
	return slices.DeleteFunc(exts, func(e string) bool { return e == "" })
}
