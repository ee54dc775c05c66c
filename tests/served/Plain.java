import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;

class Plain {
    public static void main(String[] args) throws Exception {
        try (ServerSocket listener = new ServerSocket()) {
            listener.setReuseAddress(args.length > 0);
            listener.bind(new InetSocketAddress(8000));
            while (true) {
                Socket client = listener.accept();
                client.getInputStream().read(new byte[1000]);
                new Thread(() -> {
                    try (client) {
                        while (client.getInputStream().read() >= 0) {}
                    } catch (java.io.IOException e) {
                        System.err.println(e);
                    }
                }).start();
            }
        }
    }
}
