module github.com/walherd/walherd

go 1.26
