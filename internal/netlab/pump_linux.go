package netlab

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Stats counts the packets of a direction since it was made.
type Stats struct {
	Delivered, Bytes int64
	Lost             int64 // by Shape.Loss
	TailDropped      int64 // the line's queue was full
	Cut              int64 // by SetCut or SetUDPBlocked
	TooLarge         int64 // for Shape.MTU
	Largest          int64 // bytes of a packet that was delivered
}

// Direction is one way of a link. Its methods may be called at any time.
type Direction struct {
	in, out *os.File
	alarm   *alarm

	mu         sync.Mutex // guards all below
	shape      Shape
	cut        bool
	udpBlocked bool
	random     *rand.Rand
	lineFree   time.Time // when the line has sent what is queued
	way        packets   // what is queued or on the way
	arrived    uint64    // numbers packets, so that equal times keep their order
	stats      Stats
	closed     bool
}

// unlessClosed drops the error of an end that was wanted: which one it is
// depends on where the descriptor was used when it went.
func (d *Direction) unlessClosed(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	return err
}

// pump starts to carry packets from in to out.
func (l *Lab) pump(in, out *os.File, s Shape) *Direction {
	a, err := newAlarm()
	l.must(err, "make a timer")
	d := &Direction{in: in, out: out, alarm: a, shape: s, random: l.random(l.links)}
	l.links++
	var pumps sync.WaitGroup
	var taken, delivered error
	pumps.Go(func() { taken = d.unlessClosed(d.take()) })
	pumps.Go(func() { delivered = d.unlessClosed(d.deliver()) })
	l.close = append(l.close, func() error {
		d.mu.Lock()
		d.closed = true
		d.mu.Unlock()
		// Closing in is what ends take; its owner may close it again.
		err := errors.Join(ignoreClosed(in.Close()), a.f.Close())
		pumps.Wait()
		return errors.Join(taken, delivered, err)
	})
	return d
}

// SetShape changes the shape for packets that come from now on.
func (d *Direction) SetShape(s Shape) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shape = s
}

// Shape returns the present shape.
func (d *Direction) Shape() Shape {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shape
}

// SetCut loses everything, what is on the way too, or no longer.
func (d *Direction) SetCut(cut bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut = cut
}

// SetUDPBlocked loses UDP, or no longer.
func (d *Direction) SetUDPBlocked(blocked bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.udpBlocked = blocked
}

// Stats returns the counters.
func (d *Direction) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// take reads packets as they come.
func (d *Direction) take() error {
	buf := make([]byte, 64<<10)
	for {
		n, err := d.in.Read(buf)
		if err != nil {
			return fmt.Errorf("read %s: %w", d.in.Name(), err)
		}
		if err := d.admit(buf[:n], time.Now()); err != nil {
			return err
		}
	}
}

// admit decides what becomes of a packet.
func (d *Direction) admit(b []byte, now time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	// Drawn for every packet, so that what is done to one leaves the fate of the
	// others as it was.
	lost, jitter := d.random.Float64() < d.shape.Loss, d.random.Float64()
	switch {
	case d.cut, d.udpBlocked && isUDP(b):
		d.stats.Cut++
		return nil
	case d.shape.MTU > 0 && len(b) > d.shape.MTU:
		d.stats.TooLarge++
		return nil
	case lost:
		d.stats.Lost++
		return nil
	}
	if d.lineFree.Before(now) {
		d.lineFree = now
	}
	if d.shape.Rate > 0 {
		if d.lineFree.Sub(now) > d.shape.Queue {
			d.stats.TailDropped++
			return nil
		}
		d.lineFree = d.lineFree.Add(time.Duration(float64(len(b)*8) / d.shape.Rate * float64(time.Second)))
	}
	at := d.lineFree.Add(d.shape.Delay + time.Duration(jitter*float64(d.shape.Jitter)))
	d.arrived++
	p := &packet{at: at, number: d.arrived, bytes: append([]byte(nil), b...)}
	heap.Push(&d.way, p)
	if d.way[0] != p {
		return nil
	}
	return d.alarm.set(at.Sub(now))
}

// deliver writes packets when they are due.
func (d *Direction) deliver() error {
	for {
		if err := d.alarm.wait(); err != nil {
			return err
		}
		for {
			p, err := d.due(time.Now())
			if err != nil {
				return err
			}
			if p == nil {
				break
			}
			// A host whose device is down receives nothing: that is loss.
			_, _ = d.out.Write(p.bytes)
		}
	}
}

// due takes the next packet whose time has come. If there is none it sets the
// alarm for the one that comes next, inside mu, so that admit cannot set it
// earlier and be overruled.
func (d *Direction) due(now time.Time) (*packet, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.way) > 0 {
		if at := d.way[0].at; at.After(now) {
			return nil, d.alarm.set(at.Sub(now))
		}
		p := heap.Pop(&d.way).(*packet)
		if d.cut {
			d.stats.Cut++
			continue
		}
		d.stats.Delivered++
		d.stats.Bytes += int64(len(p.bytes))
		d.stats.Largest = max(d.stats.Largest, int64(len(p.bytes)))
		return p, nil
	}
	return nil, nil
}

// isUDP reports whether an IP packet (first fragment, no IPv6 extensions) is UDP.
func isUDP(b []byte) bool {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return b[9] == unix.IPPROTO_UDP
	case len(b) >= 40 && b[0]>>4 == 6:
		return b[6] == unix.IPPROTO_UDP
	}
	return false
}

type packet struct {
	at     time.Time
	number uint64
	bytes  []byte
}

// packets is a heap by time.
type packets []*packet

func (p packets) Len() int { return len(p) }
func (p packets) Less(i, j int) bool {
	if p[i].at.Equal(p[j].at) {
		return p[i].number < p[j].number
	}
	return p[i].at.Before(p[j].at)
}
func (p packets) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *packets) Push(x any)   { *p = append(*p, x.(*packet)) }
func (p *packets) Pop() any {
	old := *p
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*p = old[:len(old)-1]
	return last
}

// alarm is a timer of the kernel's, read through the runtime's poller. The
// runtime's own timers are up to a millisecond late in an idle process, which at
// 50 Mbit/s is four packets in one.
type alarm struct {
	f    *os.File
	conn syscall.RawConn // of f
}

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "timer")
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &alarm{f: f, conn: conn}, nil
}

// set makes wait return in d, in place of what was set before.
func (a *alarm) set(d time.Duration) error {
	// Zero would disarm it.
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(d), 1))}
	var serr error
	err := a.conn.Control(func(fd uintptr) { serr = unix.TimerfdSettime(int(fd), 0, &spec, nil) })
	return errors.Join(err, serr)
}

// wait returns when the time has come.
func (a *alarm) wait() error {
	_, err := a.f.Read(make([]byte, 8))
	return err
}
