package faultnet

import (
	"context"
	"math/rand/v2"
	"time"
)

// Storm makes bad weather until ctx ends: each for about interval, one kind of fault after the other,
// with calm between them, by rng. At the end the network is good. note, if not nil, hears what comes.
func (p *Proxy) Storm(ctx context.Context, rng *rand.Rand, interval time.Duration, note func(weather string)) {
	defer p.Set(Faults{})
	if note == nil {
		note = func(string) {}
	}
	for {
		weather, cut := randomFaults(rng), rng.IntN(4) == 0
		note(weather.String())
		p.Set(weather)
		if cut {
			note("cut")
			p.Cut()
		}
		// At least half an interval, and now and then long.
		d := interval/2 + upTo(rng, interval)
		if !wakeUp(ctx, d, nil) {
			return
		}
	}
}

// randomFaults returns one kind of weather.
func randomFaults(rng *rand.Rand) Faults {
	var f Faults
	switch rng.IntN(9) {
	case 0, 1: // calm, so that there is progress
	case 2:
		f.Refuse = true
	case 3:
		f.Up.Stall, f.Down.Stall = true, true
	case 4: // half-open
		f.Up.Stall = rng.IntN(2) == 0
		f.Down.Stall = !f.Up.Stall
	case 5:
		f.Up.Delay, f.Down.Delay = upTo(rng, 50*time.Millisecond), upTo(rng, 50*time.Millisecond)
	case 6:
		f.Down.Rate = 50_000 + rng.IntN(1_000_000)
	default:
		for _, d := range []*Direction{&f.Up, &f.Down} {
			n := 1 + rng.IntN(50)
			switch rng.IntN(4) {
			case 0:
				d.Cut = n
			case 1:
				d.Corrupt = n
			case 2:
				d.Duplicate = n
			}
		}
	}
	return f
}

func upTo(rng *rand.Rand, d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }
