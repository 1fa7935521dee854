// Peer: gorilla/websocket as its chat example has it (a goroutine that reads and one that writes for
// each client, a channel between), with prepared messages: a frame is built once for all members.
// A text from a client at /room/N goes to all members of that room; elsewhere it comes back.
package main

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/gorilla/websocket"
)

// Messages that may wait for one client; one that is further behind is cut off.
const queue = 1024

type client struct{ send chan *websocket.PreparedMessage }

type room struct {
	sync.RWMutex
	members map[*client]struct{}
}

var (
	rooms    sync.Map
	pool     sync.Pool
	upgrader = websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024, WriteBufferPool: &pool}
)

func serve(w http.ResponseWriter, r *http.Request) {
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	me := &client{make(chan *websocket.PreparedMessage, queue)}
	var mine *room
	if strings.HasPrefix(r.URL.Path, "/room/") {
		found, _ := rooms.LoadOrStore(r.URL.Path, &room{members: map[*client]struct{}{}})
		mine = found.(*room)
		mine.Lock()
		mine.members[me] = struct{}{}
		mine.Unlock()
		defer func() { mine.Lock(); delete(mine.members, me); mine.Unlock(); close(me.send) }()
		go func() {
			for message := range me.send {
				if conn.WritePreparedMessage(message) != nil {
					conn.Close()
				}
			}
		}()
	}
	for {
		kind, data, err := conn.ReadMessage()
		if err != nil {
			return
		}
		if mine == nil {
			if conn.WriteMessage(kind, data) != nil {
				return
			}
			continue
		}
		message, _ := websocket.NewPreparedMessage(kind, data)
		mine.RLock()
		for member := range mine.members {
			select {
			case member.send <- message:
			default: // too far behind: the message is lost to it
			}
		}
		mine.RUnlock()
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go http.Serve(listener, http.HandlerFunc(serve))
	fmt.Printf("{\"event\":\"ready\",\"port\":%d,\"versions\":{\"go\":%q,\"gorilla/websocket\":\"1.5.3\"}}\n",
		listener.Addr().(*net.TCPAddr).Port, runtime.Version())
	for input := bufio.NewScanner(os.Stdin); input.Scan(); {
		if input.Text() == "settle" {
			debug.FreeOSMemory()
			fmt.Println(`{"event":"done"}`)
		} else {
			fmt.Println(`{"event":"error","reason":"unknown command"}`)
		}
	}
}
