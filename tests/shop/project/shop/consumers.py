"""The shop's own WebSocket, a consumer as in Channels' tutorial."""

from channels.generic.websocket import AsyncJsonWebsocketConsumer


class ChatConsumer(AsyncJsonWebsocketConsumer):
    """Say to everybody what somebody says."""

    groups = ["chat"]

    async def receive_json(self, content):
        message = {"type": "chat.message", "from": str(self.scope["user"]), "text": content["text"]}
        await self.channel_layer.group_send("chat", message)

    async def chat_message(self, event):
        await self.send_json({"from": event["from"], "text": event["text"]})
