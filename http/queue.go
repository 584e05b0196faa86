package http

// queue is a first-in-first-out of databases, each at most once in it.
type queue struct {
	ids []uint32
	in  map[uint32]struct{}
}

func (q *queue) len() int { return len(q.ids) }

func (q *queue) push(id uint32) {
	if _, ok := q.in[id]; ok {
		return
	}
	if q.in == nil {
		q.in = make(map[uint32]struct{})
	}
	q.in[id] = struct{}{}
	q.ids = append(q.ids, id)
}

func (q *queue) pop() uint32 {
	id := q.ids[0]
	q.ids = q.ids[1:]
	delete(q.in, id)
	return id
}
