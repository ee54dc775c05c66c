package main

import "net/http"

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("hello\n"))
	})
	http.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, "big")
	})
	panic(http.ListenAndServe(":8000", nil))
}
