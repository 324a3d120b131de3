package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"time"

	"github.com/gofrs/flock"
)

// bbolt trusts the pages of its file: on one that is damaged it may fault, panic
// in a goroutine of its own, or go round in circles. So the tree is walked here
// first, with plain reads. Layout, in the byte order of the machine (bbolt,
// internal/common/page.go, meta.go, bucket.go):
//
//	page        id 8, flags 2, count 2, overflow 4, elements
//	branch      position 4, key size 4, page 8
//	leaf        flags 4, position 4, key size 4, value size 4
//	bucket      root page 8 (0: an inline page follows), sequence 8
//	meta        magic 4, version 4, page size 4, flags 4, root 16, freelist 8, pages 8, txid 8, checksum 8
const (
	pageHeader   = 16
	elementSize  = 16
	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10
	bucketLeaf   = 0x01
	bucketHeader = 16
	metaSize     = 64
	magic        = 0xED0CDAED
	// noFreelist is the freelist's page where none is written.
	noFreelist = ^uint64(0)
	// lockRetry is bbolt's own.
	lockRetry = 50 * time.Millisecond
	// maxDepth of the tree; far above that of any file that fits a disk.
	maxDepth = 64
)

var order = binary.NativeEndian

// usage of a file.
type usage struct {
	size        int64
	pages, free uint64
}

// verifyFile walks every page that is in use. A file that is not there, or empty,
// is well.
func verifyFile(path string, timeout time.Duration) (usage, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return usage{}, nil
	}
	if err != nil {
		return usage{}, err
	}
	defer f.Close()
	// Not while another process writes: what it has half written is no damage.
	lock := flock.New(path)
	waiting, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if ok, err := lock.TryLockContext(waiting, lockRetry); err != nil || !ok {
		return usage{}, fmt.Errorf("another process holds it (%w)", err)
	}
	defer lock.Close()
	info, err := f.Stat()
	if err != nil {
		return usage{}, err
	}
	if info.Size() == 0 {
		return usage{}, nil
	}
	used, err := verifyPages(f, info.Size())
	if err != nil {
		return usage{}, &damageError{err}
	}
	return used, nil
}

// walker is one walk of the tree.
type walker struct {
	r        io.ReaderAt
	pageSize uint64
	pages    uint64 // below this all pages lie
	seen     map[uint64]bool
	free     uint64 // pages
}

func verifyPages(r io.ReaderAt, size int64) (usage, error) {
	meta, err := newestMeta(r, size)
	if err != nil {
		return usage{}, err
	}
	w := &walker{r: r, pageSize: uint64(order.Uint32(meta[8:])), pages: order.Uint64(meta[40:]), seen: map[uint64]bool{0: true, 1: true}}
	if w.pages > uint64(size)/w.pageSize {
		return usage{}, fmt.Errorf("it is cut off: %d bytes of %d pages", size, w.pages)
	}
	if list := order.Uint64(meta[32:]); list != noFreelist {
		if err := w.freelist(list); err != nil {
			return usage{}, err
		}
	}
	if err := w.tree(order.Uint64(meta[16:]), 0); err != nil {
		return usage{}, err
	}
	return usage{size: size, pages: w.pages, free: w.free}, nil
}

// newestMeta returns the meta page that bbolt will go by: of those that are
// whole, the one of the later transaction.
func newestMeta(r io.ReaderAt, size int64) ([]byte, error) {
	first := make([]byte, pageHeader+metaSize)
	if _, err := r.ReadAt(first, 0); err != nil {
		return nil, fmt.Errorf("its first page: %w", err)
	}
	var best []byte
	for _, at := range metaOffsets(first[pageHeader:], size) {
		page := make([]byte, pageHeader+metaSize)
		if _, err := r.ReadAt(page, at); err != nil {
			continue // cut off before it: the other one may do
		}
		meta := page[pageHeader:]
		if !wholeMeta(meta) {
			continue
		}
		if best == nil || order.Uint64(meta[48:]) > order.Uint64(best[48:]) {
			best = meta
		}
	}
	if best == nil {
		return nil, errors.New("neither of its first pages is whole")
	}
	if s := order.Uint32(best[8:]); s < 512 || s > 64<<10 || s&(s-1) != 0 {
		return nil, fmt.Errorf("pages of %d bytes", s)
	}
	return best, nil
}

// metaOffsets are where the two meta pages may be: the second begins a page
// after the first, whose size the first tells, if it is whole.
func metaOffsets(first []byte, size int64) []int64 {
	if wholeMeta(first) {
		return []int64{0, int64(order.Uint32(first[8:]))}
	}
	var all []int64
	for at := int64(512); at <= 64<<10 && at < size; at *= 2 {
		all = append(all, at)
	}
	return all
}

// wholeMeta says whether a meta is one and its checksum, FNV-1a of all before it,
// is right.
func wholeMeta(meta []byte) bool {
	if order.Uint32(meta) != magic || order.Uint32(meta[4:]) != 2 {
		return false
	}
	h := fnv.New64a()
	h.Write(meta[:56]) // a hash takes everything
	return h.Sum64() == order.Uint64(meta[56:])
}

// read returns a page with what overflows it, and marks them seen.
func (w *walker) read(id uint64) ([]byte, error) {
	if id >= w.pages {
		return nil, fmt.Errorf("page %d lies beyond the last", id)
	}
	header := make([]byte, pageHeader)
	if _, err := w.r.ReadAt(header, int64(id*w.pageSize)); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	if got := order.Uint64(header); got != id {
		return nil, fmt.Errorf("page %d says it is page %d", id, got)
	}
	overflow := uint64(order.Uint32(header[12:]))
	if id+overflow >= w.pages {
		return nil, fmt.Errorf("page %d overflows beyond the last", id)
	}
	for p := id; p <= id+overflow; p++ {
		if w.seen[p] {
			return nil, fmt.Errorf("page %d is used twice", p)
		}
		w.seen[p] = true
	}
	page := make([]byte, (1+overflow)*w.pageSize)
	if _, err := w.r.ReadAt(page, int64(id*w.pageSize)); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return page, nil
}

// freelist checks that every free page exists and is free once, and that there
// are as many as it says.
func (w *walker) freelist(id uint64) error {
	page, err := w.read(id)
	if err != nil {
		return err
	}
	if flags := order.Uint16(page[8:]); flags != freelistPage {
		return fmt.Errorf("page %d is no freelist but %#x", id, flags)
	}
	n, at := uint64(order.Uint16(page[10:])), uint64(pageHeader)
	if n == 0xFFFF {
		n, at = order.Uint64(page[pageHeader:]), pageHeader+8
	}
	if n > (uint64(len(page))-at)/8 {
		return fmt.Errorf("freelist %d of %d pages", id, n)
	}
	for i := range n {
		free := order.Uint64(page[at+8*i:])
		if free >= w.pages || w.seen[free] {
			return fmt.Errorf("page %d cannot be free", free)
		}
		// Used and free at once would be overwritten: the walk finds it.
		w.seen[free] = true
	}
	w.free = n
	return nil
}

func (w *walker) tree(id uint64, depth int) error {
	if depth > maxDepth {
		return errors.New("the tree is too deep")
	}
	page, err := w.read(id)
	if err != nil {
		return err
	}
	return w.elements(id, page, depth)
}

// elements checks a branch or leaf page.
func (w *walker) elements(id uint64, page []byte, depth int) error {
	flags, count := order.Uint16(page[8:]), int(order.Uint16(page[10:]))
	if pageHeader+count*elementSize > len(page) {
		return fmt.Errorf("page %d of %d elements", id, count)
	}
	for i := range count {
		at := pageHeader + i*elementSize
		e := page[at : at+elementSize]
		switch flags {
		case branchPage:
			if !within(page, at, order.Uint32(e), uint64(order.Uint32(e[4:]))) {
				return fmt.Errorf("page %d: element %d lies outside of it", id, i)
			}
			if err := w.tree(order.Uint64(e[8:]), depth+1); err != nil {
				return err
			}
		case leafPage:
			position, key, value := order.Uint32(e[4:]), uint64(order.Uint32(e[8:])), uint64(order.Uint32(e[12:]))
			if !within(page, at, position, key+value) {
				return fmt.Errorf("page %d: element %d lies outside of it", id, i)
			}
			if order.Uint32(e)&bucketLeaf == 0 {
				continue
			}
			begin := uint64(at) + uint64(position) + key
			if err := w.bucket(id, page[begin:begin+value], depth+1); err != nil {
				return err
			}
		default:
			return fmt.Errorf("page %d is neither branch nor leaf but %#x", id, flags)
		}
	}
	if count == 0 && flags != leafPage {
		return fmt.Errorf("page %d, of kind %#x, is empty", id, flags)
	}
	return nil
}

// bucket checks a bucket's value: a tree of its own, or a page inside of it.
func (w *walker) bucket(id uint64, value []byte, depth int) error {
	if depth > maxDepth || len(value) < bucketHeader {
		return fmt.Errorf("page %d: a bucket of %d bytes", id, len(value))
	}
	if root := order.Uint64(value); root != 0 {
		return w.tree(root, depth)
	}
	inline := value[bucketHeader:]
	if len(inline) < pageHeader || order.Uint16(inline[8:]) != leafPage {
		return fmt.Errorf("page %d: a bucket without a page", id)
	}
	return w.elements(id, inline, depth)
}

// within says whether size bytes at a position, which counts from the element,
// lie in the page.
func within(page []byte, at int, position uint32, size uint64) bool {
	return uint64(at)+uint64(position)+size <= uint64(len(page))
}
