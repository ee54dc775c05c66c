// A client on net/http: asks ADDRESS REQUESTS [SECONDS], as asks.py.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

func ask(client *http.Client) error {
	response, err := client.Get(os.Args[1])
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

func main() {
	requests, _ := strconv.Atoi(os.Args[2])
	client := &http.Client{}
	if len(os.Args) > 3 {
		seconds, _ := strconv.Atoi(os.Args[3])
		client.Timeout = time.Duration(seconds) * time.Second
	}
	for n := 0; n < requests; n++ {
		if err := ask(client); err != nil {
			fmt.Println("error:", err)
		} else {
			fmt.Println("ok")
		}
		time.Sleep(300 * time.Millisecond)
	}
	time.Sleep(10 * time.Minute)
}
